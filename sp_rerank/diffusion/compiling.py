"""Compiles a pipeline's networks in place, so that whoever calls them, a trajectory too, calls the compiled ones.

Knows torch.compile and memory layouts; knows nothing of steps or batches. Compiled networks round otherwise, so other
pixels come out of the same seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sp_rerank.diffusion.twin import find_denoiser

if TYPE_CHECKING:
    from sp_rerank.types import TextToImagePipeline


def compile_networks(
    pipe: TextToImagePipeline, device: str = "cpu", backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Compile the denoiser and the decoder at their first call; on an accelerator with the channels last in memory.

    Args:
        pipe: Changed in place, its weights are not.
        device: Where it computes.
        backend: Of torch.compile.
    """
    import torch

    for network in _networks(pipe):
        if device != "cpu":
            network.to(memory_format=torch.channels_last)  # on a CPU it is slower, by a tenth
        network.compile(backend=backend)


def is_compiled(pipe: TextToImagePipeline) -> bool:
    """Whether a pipeline's denoiser is compiled, by `compile_networks` or by its owner."""
    denoiser = find_denoiser(pipe)
    if denoiser is None:
        return False
    module: Any = denoiser[1]
    return getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")


def _networks(pipe: TextToImagePipeline) -> Iterator[Any]:
    """The denoiser, and the part of the autoencoder that its `decode` calls."""
    denoiser = find_denoiser(pipe)
    if denoiser is not None:
        yield denoiser[1]
    decoder = getattr(getattr(pipe, "vae", None), "decoder", None)
    if decoder is not None:
        yield decoder
