"""Pillow's bicubic resize with a crop, in two forms that agree in every bit: its own, and sums that run anywhere.

`torch.nn.functional.interpolate(antialias=True)` differs from Pillow by up to 31/255, and scores move with that. The
horizontal pass always comes first, as in every Pillow until 12; Pillow 13 takes the vertical one first for some images
that are more than twice as high as wide, which moves pixels by a few 1/255 (of noise, up to 24/255). Here a pixel does
not depend on the Pillow that happens to be installed.

On a CPU Pillow does the work, since it multiplies only where a weight is not zero. On an accelerator it is a matrix
product for each axis. Knows bytes; knows nothing of models or of what the square is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sp_rerank.storage.images import bands

# Pillow's PRECISION_BITS: 32 bits less 8 of the result and 2 of headroom.
_COEFFICIENT_BITS = 22
_BICUBIC_SUPPORT = 2.0
_NUMBERS_AT_ONCE = 16 * 2**20

_LARGEST_DETOUR = 16
"""How many times as long as what is kept of it an axis may be resized to; of a thin strip nearly all is cut off."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What becomes of one axis.

    Attributes:
        resized: Its length after the resize, in pixels.
        offset: The first pixel that is kept of it.
        kept: How many are kept.
    """

    resized: int
    offset: int
    kept: int


def resize_image(image: Image.Image, across: Cut, down: Cut, device: torch.device) -> Tensor:
    """Resize and crop an RGB image; on an accelerator lies no more than a band of it at a time.

    Args:
        image: RGB; not changed.
        across: Of the width.
        down: Of the height.
        device: Where the result lies, and where the sums are taken if it is an accelerator that has float64.

    Returns:
        (1, 3, height, width) uint8.
    """
    if not _takes_sums(device) and not _mostly_cut_off(across, down):
        kept = torch.from_numpy(_by_pillow(image, across, down))
        return kept.permute(2, 0, 1)[None].contiguous().to(device)
    near = device if _takes_sums(device) else torch.device("cpu")
    narrow = torch.empty(1, 3, image.height, across.kept, dtype=torch.uint8, device=near)
    for band, top in bands(image):  # each row of the horizontal pass is by itself
        narrow[..., top : top + band.height, :] = resample(bytes_of(band).to(near), -1, across)
    return resample(narrow, -2, down).to(device)


def resize_pixels(pixels: Tensor, across: Cut, down: Cut) -> Tensor:
    """Resize and crop n images of one size, on whatever device they are.

    Args:
        pixels: (n, 3, H, W) uint8.
        across: Of the width.
        down: Of the height.

    Returns:
        (n, 3, height, width) uint8 on the same device.
    """
    if _takes_sums(pixels.device):
        return resample(resample(pixels, -1, across), -2, down)
    near = pixels.cpu()
    if _mostly_cut_off(across, down):
        return resample(resample(near, -1, across), -2, down).to(pixels.device)
    kept = torch.empty(*pixels.shape[:2], down.kept, across.kept, dtype=torch.uint8)
    # A color at a time, which spares the turn to interleaved colors and back.
    for plane, result in zip(near.flatten(0, 1).numpy(), kept.flatten(0, 1).numpy(), strict=True):
        result[:] = _by_pillow(Image.fromarray(plane), across, down)
    return kept.to(pixels.device)


def _takes_sums(device: torch.device) -> bool:
    """Whether the sums are taken there: Metal has no float64, the only float type whose sums are exact here."""
    return device.type not in ("cpu", "mps")


def _mostly_cut_off(across: Cut, down: Cut) -> bool:
    """Whether Pillow would make many times the pixels that are kept, as of a thin strip."""
    return max(across.resized / across.kept, down.resized / down.kept) > _LARGEST_DETOUR


def _by_pillow(image: Image.Image, across: Cut, down: Cut) -> np.ndarray:
    """(height, width) of a gray image, (height, width, 3) of an RGB one, uint8: two passes, each cropped at once."""
    wide = image.resize((across.resized, image.height), Image.Resampling.BICUBIC)
    narrow = wide.crop((across.offset, 0, across.offset + across.kept, image.height))
    high = narrow.resize((across.kept, down.resized), Image.Resampling.BICUBIC)
    return np.array(high.crop((0, down.offset, across.kept, down.offset + down.kept)))


def bytes_of(image: Image.Image) -> Tensor:
    """An RGB image as (1, 3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def resample(pixels: Tensor, axis: int, cut: Cut) -> Tensor:
    """Resize and crop one axis of uint8 pixels, on any device that has float64; one pass of Pillow's two.

    The sums are of integers below 2^53: exact in float64, in any order.
    """
    source = pixels.shape[axis]
    if cut.resized == source:
        return pixels.narrow(axis, cut.offset, cut.kept)
    weights = torch.from_numpy(bicubic_coefficients(source, cut.resized, cut.offset, cut.kept)).to(pixels.device)
    lines = pixels.movedim(axis, -1)
    # In parts, for a line of bytes becomes eight times as long as numbers.
    parts = lines.split(max(1, _NUMBERS_AT_ONCE // max(1, source * lines[..., :1, 0].numel())), dim=-2)
    return torch.cat([_weigh(part, weights) for part in parts], dim=-2).movedim(-1, axis)


def resample_floats(pixels: Tensor, axis: int, cut: Cut) -> Tensor:
    """The same of floats in [0, 1], with a gradient and nothing rounded to 8 bits."""
    source = pixels.shape[axis]
    if cut.resized == source:
        return pixels.narrow(axis, cut.offset, cut.kept)
    weights = bicubic_coefficients(source, cut.resized, cut.offset, cut.kept) / 2.0**_COEFFICIENT_BITS
    moved = pixels.movedim(axis, -1) @ torch.from_numpy(weights).to(pixels.device, pixels.dtype).T
    return moved.movedim(-1, axis).clamp(0, 1)


def _weigh(lines: Tensor, weights: Tensor) -> Tensor:
    moved = lines.double() @ weights.T
    # clip8 of Resample.c: add a half, shift right, clip.
    return (
        moved.add_(2.0 ** (_COEFFICIENT_BITS - 1)).div_(2.0**_COEFFICIENT_BITS).floor_().clamp_(0, 255).to(torch.uint8)
    )


@lru_cache(maxsize=16)
def bicubic_coefficients(source: int, resized: int, offset: int, kept: int) -> np.ndarray:
    """The integer weights of Pillow's bicubic filter, as a matrix.

    Source: Pillow 13, src/libImaging/Resample.c, `precompute_coeffs` and `normalize_coeffs_8bpc`.

    Args:
        source: length of the axis before, in pixels.
        resized: length of the axis after, in pixels.
        offset: the first pixel wanted of the resized axis.
        kept: how many pixels are wanted; the rest would be cropped away, and of a thin strip it is nearly all.

    Returns:
        (kept, source) float64 holding integers, each row summing to about 2^22; not to be written to.
    """
    scale = source / resized
    filter_scale = max(scale, 1.0)
    support = _BICUBIC_SUPPORT * filter_scale
    center = (np.arange(offset, offset + kept)[:, None] + 0.5) * scale
    column = np.arange(source)[None, :]
    first = np.maximum(np.trunc(center - support + 0.5), 0)
    end = np.minimum(np.trunc(center + support + 0.5), source)
    weight = np.where((first <= column) & (column < end), _bicubic((column - center + 0.5) * (1.0 / filter_scale)), 0.0)
    # A running sum adds from left to right as the C loop does; `sum` adds pairwise and differs in the last bit.
    weight /= np.cumsum(weight, axis=1)[:, -1:]
    return np.trunc(weight * 2.0**_COEFFICIENT_BITS + np.where(weight < 0, -0.5, 0.5))


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5, with the operations in Pillow's order."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
