"""Which pipelines can be watched and cut on their way, told before an image is made.

Knows signatures and components; runs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sp_rerank.diffusion import twin
from sp_rerank.diffusion.call_arguments import parameters_of
from sp_rerank.diffusion.schedulers import INSTEAD, SCREEN
from sp_rerank.errors import UnwatchableError

if TYPE_CHECKING:
    from sp_rerank.diffusion.sampler import Sampler


def check_watchable(sampler: Sampler) -> None:
    """Refuse a pipeline whose loop cannot be watched or cut.

    Raises:
        UnwatchableError: Naming one that can.
    """
    pipe = sampler.pipe
    name = type(pipe).__name__
    takes = parameters_of(type(pipe).__call__)
    if "callback_on_step_end" not in takes or "latents" not in getattr(pipe, "_callback_tensor_inputs", ()):
        raise UnwatchableError(
            f"{name} has no callback_on_step_end with latents, so it cannot be cut on its way; expected a pipeline "
            f"such as StableDiffusionPipeline, {SCREEN}"
        )
    if not callable(getattr(pipe.scheduler, "step", None)):
        raise UnwatchableError(f"{name} has no scheduler with step(); expected one of diffusers such as DDIM, {SCREEN}")
    denoiser = twin.find_denoiser(pipe)
    if denoiser is None or denoiser[0] not in twin.DENOISERS:
        expected = " or ".join(twin.DENOISERS)
        raise UnwatchableError(f"{name} has no {expected}; expected a pipeline with one, {SCREEN}")
    if hasattr(pipe, "set_pag_applied_layers"):
        raise UnwatchableError(
            f"the loop of {name} counts the prompts that it began with, so no batch can be cut on its way; {INSTEAD}"
        )
    if getattr(pipe, "controlnet", None) is not None or "control_image" in takes:
        raise UnwatchableError(
            f"{name} lays its control image out for the whole batch, so no batch can be cut on its way; {INSTEAD}"
        )
    if getattr(denoiser[1], "is_cache_enabled", False):
        raise UnwatchableError(
            f"the cache between steps of this {name} mixes batches that take turns; call disable_cache(), {SCREEN}"
        )
