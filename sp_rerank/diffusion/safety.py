"""A pipeline's safety checker on tensors: a batch at once, where it is, without a turn through PIL images.

Pillow's own resize is done on the device, bit for bit, so the checker sees what the feature extractor of the original
gives it. Knows diffusers' checker; judges nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from sp_rerank.storage.images import to_bytes
from sp_rerank.storage.pillow_resize import Cut, resize_pixels

if TYPE_CHECKING:
    from torch import Tensor

Check = Callable[[Any, torch.device, torch.dtype], tuple[Any, Any]]

_BICUBIC = 3
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")


def checker_of(pipe: Any) -> Check | None:
    """What takes the place of `run_safety_checker` in a pipeline; None where that one is to stay.

    It stays in a pipeline of another family, without a checker, or with a feature extractor that does anything but
    CLIP's resize with bicubic, square crop from the center, and normalization.
    """
    checker: Any = getattr(pipe, "safety_checker", None)
    if type(checker).__name__ != "StableDiffusionSafetyChecker" or not _is_stock(type(pipe)):
        return None
    own, extractor = pipe.run_safety_checker, pipe.feature_extractor
    if not _is_clips(extractor):
        return None

    def check(image: Any, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
        if not isinstance(image, torch.Tensor):
            return own(image, device, dtype)
        seen = prepared(pipe.image_processor.denormalize(image), extractor)
        return checker(images=image, clip_input=seen.to(device, dtype))

    return check


def prepared(images: Tensor, extractor: Any) -> Tensor:
    """What a feature extractor makes of (n, 3, H, W) floats in [0, 1], rounded to 8 bits: (n, 3, size, size) float32.

    Args:
        images: On any device.
        extractor: A CLIP image processor of transformers, for its settings.
    """
    size, short = _edge(extractor, "crop_size", "height"), _edge(extractor, "size", "shortest_edge")
    height, width = images.shape[-2:]
    high, wide = (int(short * edge / min(height, width)) for edge in (height, width))
    across, down = (Cut(edge, (edge - size) // 2, size) for edge in (wide, high))
    square = resize_pixels(to_bytes(images), across, down).float().mul_(extractor.rescale_factor)
    mean, std = (square.new_tensor(values)[:, None, None] for values in (extractor.image_mean, extractor.image_std))
    return square.sub_(mean).div_(std)


def _is_stock(kind: type) -> bool:
    """Whether a pipeline's own check is that of diffusers' Stable Diffusion."""
    from diffusers import StableDiffusionPipeline

    return getattr(kind, "run_safety_checker", None) is StableDiffusionPipeline.run_safety_checker


def _is_clips(extractor: Any) -> bool:
    short = _edge(extractor, "size", "shortest_edge")
    height, width = (_edge(extractor, "crop_size", side) for side in ("height", "width"))
    does = all(getattr(extractor, step, False) for step in _STEPS)
    return does and 0 < height == width <= short and extractor.resample == _BICUBIC


def _edge(extractor: Any, size: str, name: str) -> int:
    """A number of one of its sizes, which is a dictionary or an object; 0 where there is none."""
    value = getattr(extractor, size, None)
    return (value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)) or 0
