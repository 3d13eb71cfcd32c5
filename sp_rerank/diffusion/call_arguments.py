"""What a pipeline's call takes: which arguments it has, which of them are ours to set, which a person may pass.

Knows signatures. Knows nothing of seeds, batches or what an argument means to the denoiser.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sp_rerank.errors import SpRerankError, UsageError, is_device_lost, is_out_of_memory

if TYPE_CHECKING:
    from sp_rerank.types import TextToImagePipeline

NEEDED = ("prompt", "num_images_per_prompt", "num_inference_steps", "generator", "output_type")
SET_BY_SAMPLER = {
    *NEEDED,
    "negative_prompt",
    "guidance_scale",
    "latents",
    "prompt_embeds",
    "negative_prompt_embeds",
    "return_dict",
} - {"num_inference_steps"}
DEPRECATED = ("callback", "callback_steps")
ONE_AT_A_TIME = {"PRXPipeline"}
"""Pipelines that cannot make several images in a call: PRX's time steps are those of one image with its guidance."""

RAW_TENSORS = {"IFPipeline", "Kandinsky3Pipeline", "KandinskyCombinedPipeline", "KandinskyV22CombinedPipeline"}
"""Pipelines whose tensors are in [-1, 1] and have passed no safety checker; their arrays are as everywhere."""
OTHER_GUIDANCE = ("true_cfg_scale", "prior_guidance_scale", "decoder_guidance_scale")


def parameters_of(call: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a pipeline, or of one of its methods, by name."""
    bound = inspect.ismethod(call) or inspect.isfunction(call)
    return inspect.signature(call if bound else call.__call__).parameters


def is_one_of(pipe: object, names: Container[str]) -> bool:
    """Whether a pipeline is of one of these classes, or of one made from it."""
    return any(kind.__name__ in names for kind in type(pipe).__mro__)


def check_pipeline(pipe: TextToImagePipeline, call: Callable[..., Any]) -> None:
    """Refuse a pipeline that cannot make images of one prompt from seeds, several at once.

    Raises:
        UsageError: Naming what it lacks.
    """
    missing = lacks(call)
    if missing:
        raise UsageError(
            f"{type(pipe).__name__} has no {' and no '.join(missing)}, so no search can make candidates with it; "
            "expected a text-to-image pipeline such as StableDiffusionPipeline"
        )


def lacks(call: Callable[..., Any]) -> list[str]:
    """The arguments that a call would need to make images of one prompt from seeds, several at once, and has not."""
    takes = parameters_of(call)
    return [] if _takes_any(takes) else [name for name in NEEDED if name not in takes]


def select_arguments(
    pipe: TextToImagePipeline,
    call: Callable[..., Any],
    guidance_scale: float | None,
    negative_prompt: str | None,
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """The arguments that a pipeline is called with besides text, noise and number of images.

    Raises:
        UsageError: Naming an argument that the pipeline does not have, or that is not a person's to set.
    """
    takes, name = parameters_of(call), type(pipe).__name__
    for key in arguments:
        if key in SET_BY_SAMPLER:
            raise UsageError(f"{key} is set for each batch by the sampler; expected other arguments of {name}")
        if key not in takes and key not in DEPRECATED and not _takes_any(takes):
            close = difflib.get_close_matches(key, sorted(set(takes) - SET_BY_SAMPLER), n=1)
            meant = f"; did you mean {close[0]}?" if close else f"; expected {_listed(takes)}"
            raise UsageError(f"{name} takes no {key}{meant}")
    if negative_prompt and "negative_prompt" not in takes and not _takes_any(takes):
        raise UsageError(f"{name} takes no negative prompt; expected none")
    guidance = _guidance(name, takes, guidance_scale)
    return {**arguments, **({} if guidance is None else {"guidance_scale": guidance})}


def _guidance(name: str, takes: Mapping[str, inspect.Parameter], value: float | None) -> float | None:
    """What is passed as guidance_scale; None where nothing is."""
    if "guidance_scale" not in takes:
        if value:
            other = [key for key in OTHER_GUIDANCE if key in takes]
            instead = f"pass {' and '.join(other)} as further arguments of the pipeline" if other else "expected none"
            raise UsageError(f"{name} takes no guidance_scale; {instead}")
        return None
    left_out = value == 0 and takes["guidance_scale"].default is None
    return None if left_out else value


def default_of(takes: Mapping[str, inspect.Parameter], name: str, otherwise: float) -> Any:
    """The default of a numeric parameter; `otherwise` where there is no such parameter, or it has none."""
    parameter = takes.get(name)
    if parameter is None or parameter.default in (None, inspect.Parameter.empty):
        return otherwise
    return parameter.default


def _takes_any(takes: Mapping[str, inspect.Parameter]) -> bool:
    """Whether a call hands on whatever it gets; the **kwargs of diffusers' own calls take DEPRECATED alone."""
    hands_on = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in takes.values())
    return hands_on and not all(name in takes for name in NEEDED)


def _listed(takes: Mapping[str, inspect.Parameter]) -> str:
    return ", ".join(sorted(set(takes) - SET_BY_SAMPLER - {"args", "kwargs"}))


@contextmanager
def pipeline_errors(pipe: TextToImagePipeline) -> Iterator[None]:
    """Turn what a pipeline raises about its arguments into one line.

    Raises:
        UsageError: With the pipeline's own words.
    """
    try:
        yield
    except SpRerankError:
        raise
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        images = [name for name in ("image", "control_image") if name in parameters_of(type(pipe).__call__)]
        hint = f" (it may need the further argument {images[0]})" if images else ""
        raise UsageError(f"{type(pipe).__name__} refuses its arguments{hint}: {reason}") from error
    except (IndexError, KeyError, RuntimeError) as error:
        if is_out_of_memory(error) or is_device_lost(error) or not _is_of_arguments(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UsageError(
            f"{type(pipe).__name__} fails with these arguments, {reason}; expected another number of steps, another "
            "scheduler, or a batch size of 1"
        ) from error


def _is_of_arguments(error: Exception) -> bool:
    """Whether an error is of a combination that the pipeline did not foresee: a missing place, or shapes."""
    return not isinstance(error, RuntimeError) or re.search(r"\b(size|sizes|shape|shapes)\b", str(error)) is not None
