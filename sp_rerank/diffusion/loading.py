"""Loads the pipelines that make the images, by name, path or repository, and knows what suits each of them.

Weights come from safetensors only, and no code is ever downloaded.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_rerank.errors import HubUnavailableError, StorageError, UsageError

if TYPE_CHECKING:
    import torch

HUB_TIMEOUT = 4.0  # seconds


@dataclass(frozen=True, slots=True)
class Model:
    """A model that this project knows: where it is, pinned, and what suits it.

    Attributes:
        source: a repository of the hub, or the folder of the embedded model.
        revision: 40 hex digits of the repository's commit; None for the embedded model.
        steps: of the scheduler.
        guidance_scale: of classifier-free guidance.
        cpu_batch: images at once on a CPU.
        about: one line for people.
        small_decoder: repository of an AutoencoderTiny of the same latents, for previews; None takes the model's own.
    """

    source: str
    revision: str | None
    steps: int
    guidance_scale: float
    cpu_batch: int
    about: str
    small_decoder: str | None = None


MINI = str(Path(str(resources.files("sp_rerank"))) / "mini" / "pipeline")
MODELS = {
    "mini": Model(MINI, None, 16, 2.5, 20, "the embedded model: 64x64 emoji scenes, for trying things out"),
    "sd-v1.4": Model(
        "CompVis/stable-diffusion-v1-4",
        "133a221b8aa7292a167afc5127cb63fb5005638b",
        50,
        7.5,
        4,
        "Stable Diffusion v1.4, 512x512",
        "madebyollin/taesd",
    ),
}
ACCELERATOR_BATCH = 16  # doubled by guidance it stays below the 64 latents at which upsampling leaves channels_last
UNKNOWN_CPU_BATCH = 4


def find_device(device: str = "auto") -> str:
    """The device to use: the accelerator where there is one, else the CPU.

    Raises:
        UsageError: if the device asked for is not on this machine.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if device == "auto":
        return accelerator.type if accelerator else "cpu"
    kind = device.split(":")[0]
    if kind != "cpu" and (accelerator is None or kind != accelerator.type):
        here = f"cpu and {accelerator.type}" if accelerator else "cpu only"
        raise UsageError(f"no device {device!r} on this machine; there is {here}")
    return device


def find_model(spec: str, device: str) -> tuple[str, str | None]:
    """The model that a word stands for, and one line that explains the choice where it was ours to make.

    Args:
        spec: "auto", a name of MODELS, a folder, or a repository of the hub such as "stabilityai/sdxl-turbo".
        device: decides what "auto" is: Stable Diffusion v1.4 on an accelerator, the embedded model on a CPU.

    Raises:
        UsageError: if it is none of these.
    """
    if spec == "auto":
        if device == "cpu":
            return "mini", "no accelerator here: taking the embedded mini model; choose another with --model"
        return "sd-v1.4", f"taking Stable Diffusion v1.4 on {device}; choose another with --model"
    known = {model.source: name for name, model in MODELS.items()}
    if spec in MODELS or spec in known:
        return known.get(spec, spec), None
    if (Path(spec) / "model_index.json").is_file() or _is_repository(spec):
        return spec, None
    raise UsageError(
        f"no model {spec!r}: expected one of {', '.join(MODELS)}, a folder with a model_index.json, "
        "or a repository like owner/name"
    )


def _is_repository(spec: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if Path(spec).exists() or spec.startswith((".", "/", "~")) or spec.count("/") != 1:
        return False
    try:
        validate_repo_id(spec)
    except HFValidationError:
        return False
    return True


def find_dtype(dtype: str, model: str, device: str) -> torch.dtype:
    """The precision to compute in: half on an accelerator; on a CPU bfloat16 for the mini model where it is fast."""
    import torch

    if dtype != "auto":
        known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
        if dtype not in known:
            raise UsageError(f"no precision {dtype!r}; expected auto, {', '.join(known)}")
        return known[dtype]
    if device != "cpu":
        return torch.float16
    fast = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if model == "mini" and fast else torch.float32


def load_pipeline(
    spec: str, *, device: str = "cpu", dtype: Any = None, scheduler: str | None = None, safety_checker: bool = True
) -> Any:
    """A diffusers text-to-image pipeline, ready on its device, its own progress bars off.

    Args:
        spec: a name of MODELS, a folder, or a repository.
        device: of the weights.
        dtype: of the weights; float32 where None.
        scheduler: the class name of another scheduler of diffusers, such as "DDIMScheduler" or just "DDIM".
        safety_checker: False leaves a checkpoint's safety checker out.

    Raises:
        UsageError: if the folder is no pipeline, the repository does not exist, or the scheduler does not fit.
        HubUnavailableError: if the repository is not in the cache and the hub cannot be reached.
        StorageError: if the files are damaged.
    """
    import torch
    from diffusers import DiffusionPipeline

    model = MODELS.get(spec)
    source, revision = (model.source, model.revision) if model else (spec, None)
    if revision or not Path(source).exists():  # a folder that happens to have a pinned model's name is not that model
        source = _fetch(source, revision)
    extra: dict[str, Any] = {} if safety_checker else {"safety_checker": None, "requires_safety_checker": False}
    try:
        pipe = DiffusionPipeline.from_pretrained(
            source, dtype=dtype or torch.float32, use_safetensors=True, local_files_only=True, **extra
        )
    except Exception as error:  # diffusers, transformers and safetensors raise a dozen kinds
        raise StorageError(f"the model in {spec} cannot be loaded: {_first_line(error)}") from error
    if "prompt" not in inspect.signature(type(pipe).__call__).parameters:
        raise UsageError(f"{spec} is a {type(pipe).__name__}, not a text-to-image pipeline")
    if scheduler:
        pipe.scheduler = _scheduler(pipe, scheduler)
    pipe.set_progress_bar_config(disable=True)
    try:
        return pipe.to(device)
    except RuntimeError as error:
        raise UsageError(f"the model cannot be put on {device!r}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _fetch(repository: str, revision: str | None) -> str:
    """The folder of a repository in the local cache, downloaded first where it is not there."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import model_info
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    pin: dict[str, Any] = {"revision": revision, "use_safetensors": True}
    try:
        return str(DiffusionPipeline.download(repository, local_files_only=True, **pin))
    except Exception:  # not (wholly) in the cache: what is raised differs from version to version
        pass
    try:
        model_info(repository, revision=revision, timeout=HUB_TIMEOUT)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UsageError(f"the hub has no {repository!r}, or it needs a login; known: {', '.join(MODELS)}") from error
    except Exception as error:  # offline mode, no network, a time-out, a hub that is down
        pinned = f" --revision {revision}" if revision else ""
        raise HubUnavailableError(
            f"{repository} (model_index.json) is not in the cache and the hub cannot be reached: fetch it where there "
            f"is a network with `hf download {repository}{pinned}`, or use --model mini"
        ) from error
    try:
        return str(DiffusionPipeline.download(repository, **pin))
    except Exception as error:  # no safetensors, code of its own, a full disk, a connection that broke
        raise StorageError(f"{repository} cannot be downloaded: {_first_line(error)}") from error


def _scheduler(pipe: Any, name: str) -> Any:
    """Another scheduler with the configuration of the pipeline's own."""
    compatible = {kind.__name__: kind for kind in pipe.scheduler.compatibles}
    kind = compatible.get(name) or compatible.get(f"{name}Scheduler")
    if kind is None:
        listed = ", ".join(sorted(kind.removesuffix("Scheduler") for kind in compatible))
        raise UsageError(f"no scheduler {name!r} for this model; expected one of {listed}")
    return kind.from_config(pipe.scheduler.config)


def model_of(pipe: Any) -> str:
    """The name under which a loaded pipeline's model is known, else its repository or folder."""
    return origin_of(pipe)[0]


def origin_of(pipe: Any) -> tuple[str, str | None]:
    """Where a loaded pipeline's model comes from: its name, repository or folder, and the commit of a repository."""
    source = str(getattr(pipe, "name_or_path", "") or pipe.config.get("_name_or_path", "") or "in memory")
    cached = re.search(r"models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})", source)
    if cached:
        source, revision = cached[1].replace("--", "/"), cached[2]
    else:
        revision = None
    for name, model in MODELS.items():
        if source == model.source and revision == model.revision:
            return name, revision
    return source, revision


def default_settings(pipe: Any) -> tuple[int, float, int]:
    """Steps, guidance scale and batch size that suit a pipeline: its model's own, else its class's defaults."""
    model = MODELS.get(model_of(pipe))
    on_cpu = pipe.device.type == "cpu"
    if model:
        return model.steps, model.guidance_scale, model.cpu_batch if on_cpu else ACCELERATOR_BATCH
    defaults = inspect.signature(type(pipe).__call__).parameters
    steps, guidance = (defaults[name].default for name in ("num_inference_steps", "guidance_scale"))
    return steps, guidance, UNKNOWN_CPU_BATCH if on_cpu else ACCELERATOR_BATCH
