"""A finished image made larger by the weights that made it: scaled up, noised a little, and denoised again.

Knows diffusers' image-to-image pipelines and their arguments. Knows nothing of runs, files or scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sp_rerank.diffusion.call_arguments import parameters_of, pipeline_errors, select_arguments
from sp_rerank.diffusion.loading import quiet
from sp_rerank.errors import NothingUsableError, OptionError, TryAgainError, UsageError, is_out_of_memory

if TYPE_CHECKING:
    from PIL import Image

    from sp_rerank.config import RunConfig

NEEDED = ("prompt", "image", "strength", "num_inference_steps", "generator", "output_type")
NOT_SHARED = ("height", "width", "timesteps", "sigmas")
"""Arguments of a run that do not go over: size and steps are those of the larger image."""

TAKEN = "Stable Diffusion, SDXL, Stable Diffusion 3, Flux, Qwen-Image or Z-Image"


def image_to_image(pipe: Any) -> Any:
    """The image-to-image pipeline of a text-to-image pipeline's family, on the very same weights.

    Raises:
        UsageError: If diffusers has none for it, or one without a strength.
    """
    from diffusers import AutoPipelineForImage2Image

    refusal = UsageError(
        f"{type(pipe).__name__} has no image-to-image pipeline in diffusers, by which an image is made larger; "
        f"expected a model of {TAKEN}"
    )
    try:
        with quiet():
            found: Any = AutoPipelineForImage2Image.from_pipe(pipe)
    except (ValueError, AttributeError) as error:
        raise refusal from error
    takes = parameters_of(found)
    if any(name not in takes for name in NEEDED):
        raise refusal
    found.set_progress_bar_config(disable=True)
    return found


def size_of(pipe: Any, size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Width and height in pixels of an image that is made larger: the nearest multiple that the pipeline takes."""
    processor = getattr(pipe, "image_processor", None)
    step = int(getattr(getattr(processor, "config", None), "vae_scale_factor", 8))
    width, height = (max(step, round(side * scale / step) * step) for side in size)
    return width, height


def enlarge(
    pipe: Any, image: Image.Image, config: RunConfig, *, seed: int, steps: int, scale: float, strength: float
) -> Image.Image:
    """Make an image larger with the settings of the run that it is of.

    Args:
        pipe: As `image_to_image` gives it.
        image: RGB.
        config: Of the run.
        seed: Of the noise that is added.
        steps: Number of scheduler steps, of which the share `strength` is taken.
        scale: Of the sides.
        strength: How much is made anew, above 0 and at most 1.

    Raises:
        OptionError: If so few steps are left that none is taken.
        UsageError: If the pipeline refuses its arguments.
        NothingUsableError: If the safety checker replaced the larger image.
        TryAgainError: If memory does not suffice.
    """
    import torch
    from PIL import Image

    if int(steps * strength) < 1:
        raise OptionError("strength", strength, f"at least {1 / steps:.3g}, for one of {steps} steps")
    large = image.resize(size_of(pipe, image.size, scale), Image.Resampling.LANCZOS)
    sides = {"height": large.height, "width": large.width}
    arguments = {
        **_settings(pipe, config),
        **{side: pixels for side, pixels in sides.items() if side in parameters_of(pipe)},  # SD 1 and 2 read the image
        "prompt": config.prompt,
        "image": large,
        "strength": strength,
        "num_inference_steps": steps,
        "generator": [torch.Generator("cpu").manual_seed(seed)],
        "output_type": "pil",
    }
    try:
        with pipeline_errors(pipe), torch.no_grad():
            output = pipe(**arguments)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TryAgainError(
            f"memory does not suffice for {large.width} x {large.height} pixels; free some, or take a smaller scale"
        ) from error
    if any(getattr(output, "nsfw_content_detected", None) or ()):
        raise NothingUsableError("the safety checker replaced the larger image; take another strength or candidate")
    return output.images[0]


def _settings(pipe: Any, config: RunConfig) -> dict[str, Any]:
    """Guidance, negative prompt and further arguments of the run, as far as the pipeline takes them."""
    takes = parameters_of(pipe)
    further = {name: value for name, value in config.pipe_kwargs.items() if name in takes and name not in NOT_SHARED}
    return _negative(config, takes) | select_arguments(
        pipe, pipe, config.guidance_scale if "guidance_scale" in takes else None, config.negative_prompt, further
    )


def _negative(config: RunConfig, takes: Mapping[str, Any]) -> dict[str, Any]:
    return {"negative_prompt": config.negative_prompt} if config.negative_prompt and "negative_prompt" in takes else {}
