"""Previews: what a batch would look like if the model's present guess of the finished latents were right.

Decodes with the pipeline's own autoencoder, or with a small one of the same latent space (AutoencoderTiny, 6 % of the
cost at Stable Diffusion's size) where this machine has one. Knows latents and pixels; knows nothing of steps or scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_rerank.diffusion.loading import MODELS
from sp_rerank.errors import HubUnavailableError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

AT_ONCE = 8
"""Images per decoder call: 32 of 512x512 pixels have 2^31 activations, more than convolutions can count."""


def find_decoder(model: str) -> str | None:
    """The small decoder of a known model where this machine has it, as `load_decoder` takes it; nothing is fetched.

    Args:
        model: by name.

    Returns:
        REPOSITORY@COMMIT of the cache, or None.
    """
    source = MODELS[model].small_decoder if model in MODELS else None
    folder = source and _cached(source)
    return f"{source}@{folder.name}" if folder else None


def load_decoder(name: str, pipe: Any) -> Any:
    """A small decoder on a pipeline's device, in its precision.

    Raises:
        UsageError: if it is none of a known model.
        HubUnavailableError: if it is not in this machine's cache.
    """
    from diffusers import AutoencoderTiny

    repository, _, commit = name.partition("@")
    if repository not in {model.small_decoder for model in MODELS.values()}:
        raise UsageError(f"no small decoder {name!r} in this version; begin the search anew")
    folder = _cached(repository, commit or None)
    if folder is None:
        raise HubUnavailableError(f"the search began with the small decoder {name}, which is not in the cache here")
    small = AutoencoderTiny.from_pretrained(folder, use_safetensors=True, dtype=pipe.vae.dtype)
    return small.to(pipe._execution_device).eval()


def _cached(repository: str, commit: str | None = None) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=commit, local_files_only=True))
    except OSError:  # not in the cache
        return None


class Previews:
    """Makes images of latents.

    Args:
        pipe: whose latents they are: Stable Diffusion 1/2, SDXL, Stable Diffusion 3 or Flux.
        decoder: a small one of the same latents, by the name that `find_decoder` gives; the pipeline's own where None.
        height: of the images in pixels where it was asked for; needed for Flux's packed latents alone.
        width: likewise.
    """

    def __init__(
        self, pipe: Any, decoder: str | None = None, *, height: int | None = None, width: int | None = None
    ) -> None:
        self._pipe, self._decoder = pipe, load_decoder(decoder, pipe) if decoder else pipe.vae
        self._size = (height, width)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as the pipeline holds them to (b, 3, H, W) images in [0, 1], float32 on the same device.

        Latents that are not finite become images that are not.
        """
        import torch

        latents = self._unpacked(latents)
        decoder, dtype = self._decoder, self._decoder.dtype
        # SDXL's autoencoder overflows in half precision, and says so
        upcast = dtype == torch.float16 and getattr(decoder.config, "force_upcast", False)
        if upcast:
            decoder.to(torch.float32)
        try:
            with torch.no_grad():
                return torch.cat([self._decode(chunk) for chunk in latents.split(AT_ONCE)])
        finally:
            if upcast:
                decoder.to(dtype)

    def _decode(self, latents: Tensor) -> Tensor:
        # an offloaded autoencoder comes to the accelerator when it is called
        device = latents.device if hasattr(self._decoder, "_hf_hook") else self._decoder.device
        scaled = unscaled(latents, self._decoder.config).to(device, self._decoder.dtype)
        pixels = self._decoder.decode(scaled, return_dict=False)[0]
        return (pixels.float() / 2 + 0.5).clamp(0, 1).to(latents.device)

    def _unpacked(self, latents: Tensor) -> Tensor:
        """(b, c, h, w): Flux holds its latents as (b, h/2 * w/2, 4c)."""
        if latents.ndim == 4:
            return latents
        factor = self._pipe.vae_scale_factor
        height, width = (side or self._pipe.default_sample_size * factor for side in self._size)
        return self._pipe._unpack_latents(latents, height, width, factor)


def unscaled(latents: Tensor, config: Any) -> Tensor:
    """A diffusion model's latents (b, c, h, w) in the scale of their autoencoder, by its `config`."""
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        mean, std = (latents.new_tensor(one).view(1, -1, 1, 1) for one in (mean, std))
        return latents * std / config.scaling_factor + mean
    return latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0)
