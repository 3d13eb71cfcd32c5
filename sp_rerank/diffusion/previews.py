"""Previews: what a batch would look like if the model's present guess of the finished latents were right.

Decodes with the pipeline's own autoencoder, or with a small one of the same latent space (AutoencoderTiny, 6 % of the
cost at Stable Diffusion's size) where this machine has one. Knows latents and pixels; knows nothing of steps or scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sp_rerank.diffusion.call_arguments import default_of, parameters_of
from sp_rerank.diffusion.components import load_network
from sp_rerank.diffusion.loading import MODELS
from sp_rerank.diffusion.schedulers import INSTEAD
from sp_rerank.errors import HubUnavailableError, UnwatchableError, UsageError
from sp_rerank.storage.hub import cached_snapshot

if TYPE_CHECKING:
    from torch import Tensor

    from sp_rerank.types import TextToImagePipeline

AT_ONCE = 8
"""Images per decoder call: 32 of 512x512 pixels have 2^31 activations, more than convolutions can count."""


def find_decoder(model: str) -> str | None:
    """The small decoder of a known model where this machine has it, as `load_decoder` takes it; nothing is fetched.

    Args:
        model: Name of a model.

    Returns:
        REPOSITORY@COMMIT of the cache, or None.
    """
    source = MODELS[model].small_decoder if model in MODELS else None
    folder = source and cached_snapshot(source)
    return f"{source}@{folder.name}" if folder else None


def load_decoder(name: str, pipe: TextToImagePipeline) -> Any:
    """A small decoder on a pipeline's device, in its precision.

    Raises:
        UsageError: If it belongs to no known model.
        HubUnavailableError: If it is not in this machine's cache.
    """
    from diffusers import AutoencoderTiny

    repository, _, commit = name.partition("@")
    if repository not in {model.small_decoder for model in MODELS.values()}:
        raise UsageError(f"no small decoder {name!r} in this version; begin the search anew")
    folder = cached_snapshot(repository, commit or None)
    if folder is None:
        raise HubUnavailableError(f"the search began with the small decoder {name}, which is not in the cache here")
    small = load_network(AutoencoderTiny, folder, _vae(pipe).dtype)
    return small.to(getattr(pipe, "_execution_device", pipe.device)).eval()


def _vae(pipe: TextToImagePipeline) -> Any:
    vae = getattr(pipe, "vae", None)
    if vae is None:
        raise UnwatchableError(
            f"{type(pipe).__name__} has no vae that decodes latents, so no preview can be made; {INSTEAD}"
        )
    return vae


class Previews:
    """Makes images of latents.

    Args:
        pipe: The pipeline whose latents they are.
        decoder: A small one of the same latents, by the name that `find_decoder` gives; the pipeline's own where None.
        height: Height of the images in pixels where it was asked for; only packed latents (Flux, Qwen-Image) need it.
        width: Width of the images in pixels where it was asked for.

    Raises:
        UnwatchableError: If the pipeline has no autoencoder.
    """

    def __init__(
        self,
        pipe: TextToImagePipeline,
        decoder: str | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        self._pipe = pipe
        self._decoder = load_decoder(decoder, pipe) if decoder else _vae(pipe)
        self._size = {"height": height, "width": width}

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as the pipeline holds them to (b, 3, H, W) images in [0, 1], float32 on the same device.

        Latents that are not finite become images that are not.

        Raises:
            UnwatchableError: If the latents are laid out in a way that is not known here.
        """
        import torch

        latents = self._unpacked(latents)
        decoder, dtype = self._decoder, self._decoder.dtype
        # SDXL's autoencoder overflows in half precision; its configuration marks it
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
        scaled = self._unscaled(latents).to(device, self._decoder.dtype)
        pixels = self._decoder.decode(scaled, return_dict=False)[0]
        if pixels.ndim == 5:  # the one frame of an autoencoder for videos (Qwen-Image, Krea 2)
            pixels = pixels[:, :, 0]
        return (pixels.float() / 2 + 0.5).clamp(0, 1).to(latents.device)

    def _unscaled(self, latents: Tensor) -> Tensor:
        statistics = getattr(self._decoder, "bn", None)
        if statistics is None:
            return unscaled(latents, self._decoder.config)
        # Flux 2: normalized as patches, channel by channel
        deviation = (statistics.running_var + self._decoder.config.batch_norm_eps).sqrt()
        mean, deviation = (value.view(1, -1, 1, 1).to(latents) for value in (statistics.running_mean, deviation))
        return self._private("_unpatchify_latents")(latents * deviation + mean)

    def _unpacked(self, latents: Tensor) -> Tensor:
        """(b, c, h, w), or (b, c, 1, h, w): transformers hold their latents as (b, patches, c)."""
        if latents.ndim != 3:
            return latents
        height, width = (self._side(name) for name in ("height", "width"))
        if hasattr(self._pipe, "_unpatchify_latents"):  # Flux 2
            rows = height // (self._private("vae_scale_factor") * 2)
            return latents.unflatten(1, (rows, -1)).permute(0, 3, 1, 2)
        unpack = self._private("_unpack_latents")
        given = {"height": height, "width": width}
        for name in parameters_of(unpack).keys() - {"latents", "height", "width"}:
            given[name] = self._patch_size() if name == "patch_size" else self._private(name)
        return unpack(latents, **given)

    def _side(self, name: str) -> int:
        asked = self._size[name] or default_of(parameters_of(type(self._pipe).__call__), name, 0)
        return asked or self._private("default_sample_size") * self._private("vae_scale_factor")

    def _patch_size(self) -> int:
        return self._private("transformer").config.patch_size

    def _private(self, name: str) -> Any:
        """An attribute of the pipeline that only some have.

        Raises:
            UnwatchableError: If this one has none.
        """
        value = getattr(self._pipe, name, None)
        if value is None:
            raise UnwatchableError(
                f"{type(self._pipe).__name__} holds its latents in a way that is not known here (it has no {name}), so "
                f"no preview can be made; {INSTEAD}"
            )
        return value


def unscaled(latents: Tensor, config: object) -> Tensor:
    """Latents of a diffusion model, (b, c, h, w) or (b, c, 1, h, w), in the scale of their autoencoder, by `config`.

    Raises:
        UnwatchableError: If the configuration holds neither a factor nor a mean and a spread.
    """
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    factor = getattr(config, "scaling_factor", None)
    if mean is not None and std is not None:
        shape = (1, -1, *(1,) * (latents.ndim - 2))
        mean, std = (latents.new_tensor(value).view(shape) for value in (mean, std))
        return latents * std / (1 if factor is None else factor) + mean
    if factor is None:
        raise UnwatchableError(
            f"the autoencoder's configuration has no scaling_factor, so no preview can be made; {INSTEAD}"
        )
    return latents / factor + (getattr(config, "shift_factor", None) or 0)
