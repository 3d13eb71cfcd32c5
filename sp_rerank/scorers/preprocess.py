"""What a picture becomes before an encoder sees it: quantized, resized, made square, normalized.

Knows nothing of models. There are three geometries, because the scorers' originals have three:

- "center_crop", of CLIP and most others, resizes the image with Pillow. Pillow's bicubic is done as tensor arithmetic,
  on any device and bit for bit, because `torch.nn.functional.interpolate(antialias=True)` differs from it by up to
  31/255, and scores move with that. The horizontal pass always comes first, as in every Pillow until 12; Pillow 13
  takes the vertical one first for some images that are more than twice as high as wide, which moves pixels by a few
  1/255 (of noise, up to 24/255). Here a score does not depend on the Pillow that happens to be installed.
- "squash", of BLIP's own evaluation, does so without regard to the proportions.
- "longest_edge_pad", of HPS v2 and v2.1, resizes the float tensor with torch and pads it to a square.

For a gradient to the pixels each has a differentiable form: the same weights on floats, nothing rounded to 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sp_rerank.errors import UsageError
from sp_rerank.storage.images import bands, seen_rgb

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

GEOMETRIES = ("center_crop", "squash", "longest_edge_pad")

_OFFSETS = {"round": lambda margin: round(margin / 2), "floor": lambda margin: margin // 2}

# Pillow's PRECISION_BITS: 32 bits less 8 of the result and 2 of headroom.
_COEFFICIENT_BITS = 22
_BICUBIC_SUPPORT = 2.0
_NUMBERS_AT_ONCE = 16 * 2**20


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a square of `size` pixels: the geometry, then (x - mean) / std.

    - "center_crop": shortest edge to `size` (bicubic, antialiased, in 8 bits), square from the center. The same numbers
      as `open_clip.transform.image_transform(size, is_train=False)` gives for an RGB image (with Pillow 13: for one at
      most twice as high as wide). With crop "floor" those of transformers' `CLIPImageProcessor`.
    - "squash": both edges to `size`, with Pillow's bicubic in 8 bits.
    - "longest_edge_pad": longest edge to `size` (bicubic, on floats, not clipped: it may leave [0, 1]), zeros around
      the center before normalizing. The same numbers as `image_transform(size, is_train=False,
      resize_longest_max=True)` of the open_clip in hpsv2x 1.2.0. Two cases in which that one fails are mended: an image
      whose longest edge is `size` already, but which is no square, is padded too; an edge that would round to 0 is 1.

    Stored in the configuration of a checkpoint, so that training and inference cannot drift apart.

    Attributes:
        size: Edge of the square that the encoder takes, in pixels.
        mean: Of red, green and blue, in [0, 1].
        std: Of red, green and blue, in [0, 1].
        geometry: How a rectangle becomes a square, "center_crop", "squash" or "longest_edge_pad".
        antialias: False, with "longest_edge_pad" only, samples without a low-pass filter, as torchvision did by default
            before 0.17: it reproduces scores of that time.
        crop: Where the square of a "center_crop" begins when an odd number of pixels is cut off: "round" half to even,
            as torchvision and open_clip do, or "floor", as transformers does.

    Raises:
        UsageError: if the geometry is another, or one of Pillow's is to go without antialiasing.
    """

    size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    geometry: str = "center_crop"
    antialias: bool = True
    crop: str = "round"

    def __post_init__(self) -> None:
        if self.geometry not in GEOMETRIES:
            raise UsageError(f"preprocess: expected a geometry out of {', '.join(GEOMETRIES)}, got {self.geometry!r}")
        if self.crop not in _OFFSETS:
            raise UsageError(f"preprocess: expected a crop out of {', '.join(_OFFSETS)}, got {self.crop!r}")
        if self.geometry != "longest_edge_pad" and not self.antialias:
            raise UsageError(
                f"preprocess: expected antialias=True with the geometry {self.geometry!r}, which resizes as Pillow "
                "does, always antialiased; got antialias=False, which goes with 'longest_edge_pad'"
            )

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Preprocess:
        """The inverse of `to_dict`, also after a turn through JSON.

        Raises:
            UsageError: if a key is missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        if "size" not in stored or set(stored) - known:
            raise UsageError(f"preprocess: expected 'size' and keys out of {sorted(known)}, got {sorted(stored)}")
        triples: dict[str, Any] = {key: tuple(stored[key]) for key in ("mean", "std") if key in stored}
        return cls(**(stored | triples))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def __call__(
        self,
        images: Tensor | Sequence[Image.Image],
        device: torch.device | str | None = None,
        *,
        differentiable: bool = False,
    ) -> Tensor:
        """Prepare n images for an encoder; no gradient passes unless asked for.

        A tensor is rounded to 8 bits first: it is scored as the PNG saved from it would be. PIL images are turned into
        RGB first (open_clip turns them after resizing, which for palettes means nearest-neighbour).

        Args:
            images: (n, 3, H, W) float in [0, 1], clipped to that range; or n PIL images of any sizes.
            device: where to compute and where the result lies; by default a tensor's own, the CPU for PIL images.
            differentiable: of a tensor only: with a gradient to it, and not rounded to 8 bits: no pixel is further than
                2.5/255 (before the normalization) from what it is otherwise. The gradient is 0 where a pixel, or what
                the resize makes of it, is clipped.

        Returns:
            (n, 3, size, size) float32, normalized. An image with a NaN or an infinity is NaN throughout.

        Raises:
            UsageError: if a tensor is not of shape (n, 3, H, W), or not of floats, or a gradient is asked for to others.
        """
        if differentiable:
            if not isinstance(images, Tensor):
                raise UsageError(
                    f"images: expected a tensor, for a gradient to its pixels, got a {type(images).__name__}"
                )
            return self._with_gradient(images.to(device or images.device))
        with torch.no_grad():
            if isinstance(images, Tensor):
                return self._from_floats(images.to(device or images.device))
            if not images:
                return torch.empty(0, 3, self.size, self.size, device=device)
            return torch.cat([self._from_image(seen_rgb(image), torch.device(device or "cpu")) for image in images])

    def _from_image(self, image: Image.Image, device: torch.device) -> Tensor:
        """As `_from_bytes`, of an RGB image, of which no more than a band is ever a tensor."""
        parts = ((_bytes_of(band).to(device), top) for band, top in bands(image))
        # Each row of the horizontal pass is by itself, in all geometries.
        if self.geometry == "longest_edge_pad":
            narrow = torch.cat([self._shrink(part, -1, image.size) for part, _ in parts], dim=-2)
            return self._normalize(self._pad(self._shrink(narrow, -2, image.size)))
        narrow = torch.empty(1, 3, image.height, self.size, dtype=torch.uint8, device=device)
        for part, top in parts:
            narrow[..., top : top + part.shape[-2], :] = self._resize_axis(part, -1, image.size)
        return self._normalize(self._resize_axis(narrow, -2, image.size).float().div(255))

    def _from_floats(self, images: Tensor) -> Tensor:
        _check_floats(images)
        finite = images.isfinite().flatten(1).all(dim=1)
        rounded = images.float().nan_to_num().clamp(0, 1).mul(255).round().to(torch.uint8)
        return self._from_bytes(rounded).masked_fill(~finite[:, None, None, None], torch.nan)

    def _with_gradient(self, images: Tensor) -> Tensor:
        """As `_from_floats`, of floats all the way."""
        _check_floats(images)
        finite = images.isfinite().flatten(1).all(dim=1)
        pixels = images.float().nan_to_num().clamp(0, 1)
        size = (pixels.shape[-1], pixels.shape[-2])
        if self.geometry == "longest_edge_pad":
            square = self._pad(self._shrink(self._shrink(pixels, -1, size), -2, size))
        else:
            square = self._resize_floats(self._resize_floats(pixels, -1, size), -2, size)
        return self._normalize(square).masked_fill(~finite[:, None, None, None], torch.nan)

    def _from_bytes(self, pixels: Tensor) -> Tensor:
        """(n, 3, H, W) uint8 -> (n, 3, size, size) float32, with torchvision's order of operations."""
        size = (pixels.shape[-1], pixels.shape[-2])
        if self.geometry == "longest_edge_pad":
            return self._normalize(self._pad(self._shrink(self._shrink(pixels, -1, size), -2, size)))
        narrow = self._resize_axis(pixels, -1, size)
        return self._normalize(self._resize_axis(narrow, -2, size).float().div(255))

    def _normalize(self, square: Tensor) -> Tensor:
        mean, std = (square.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return square.sub(mean).div(std)

    def _resize_axis(self, pixels: Tensor, axis: int, size: tuple[int, int]) -> Tensor:
        """One pass of the resize of an image of this (width, height), and the crop of the same axis."""
        # Metal has no float64, the only float type whose sums are exact here.
        exact = pixels.cpu() if pixels.device.type == "mps" else pixels
        return _resample(exact, axis, *self._window(axis, size), self.size).to(pixels.device)

    def _resize_floats(self, pixels: Tensor, axis: int, size: tuple[int, int]) -> Tensor:
        """The same of floats in [0, 1], with a gradient."""
        resized, offset = self._window(axis, size)
        source = pixels.shape[axis]
        if resized == source:
            return pixels.narrow(axis, offset, self.size)
        weights = torch.from_numpy(bicubic_coefficients(source, resized, offset, self.size) / 2.0**_COEFFICIENT_BITS)
        weights = weights.to(pixels.device, pixels.dtype)
        return (pixels.movedim(axis, -1) @ weights.T).movedim(-1, axis).clamp(0, 1)

    def _window(self, axis: int, size: tuple[int, int]) -> tuple[int, int]:
        """How long an axis of an image of this (width, height) becomes, and where the square begins on it."""
        edge = size[0] if axis == -1 else size[1]
        resized = self.size if self.geometry == "squash" else int(self.size * edge / min(size))
        return resized, _OFFSETS[self.crop](resized - self.size)

    def _shrink(self, pixels: Tensor, axis: int, size: tuple[int, int]) -> Tensor:
        """One pass of torch's resize, to floats in [0, 1], of an image of this (width, height); longest edge to `size`.

        The two passes give what torch gives in one, to the bit on a CPU.
        """
        scale = self.size / max(size)
        # CUDA's kernel has the shared memory for shrinking about 40 times; only photographs go beyond that.
        nearby = pixels.cpu() if scale < 1 / 32 else pixels
        # Contiguous: torch 2.15 resizes an image 2 pixels wide wrongly (by .5) where the channels are last in memory.
        floats = nearby if nearby.is_floating_point() else nearby.contiguous().float().div_(255)
        shape = list(floats.shape[-2:])
        shape[axis] = max(round(shape[axis] * scale), 1)
        if shape != list(floats.shape[-2:]):
            floats = F.interpolate(floats, size=shape, mode="bicubic", antialias=self.antialias, align_corners=False)
        return floats.to(pixels.device)

    def _pad(self, picture: Tensor) -> Tensor:
        """Zeros around the center, up to the square."""
        height, width = picture.shape[-2:]
        left, top = (self.size - width) // 2, (self.size - height) // 2
        return F.pad(picture, (left, self.size - width - left, top, self.size - height - top))


def _check_floats(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise UsageError(f"images: expected (n, 3, H, W) floats in [0, 1], got {tuple(images.shape)} of {images.dtype}")


def _bytes_of(image: Image.Image) -> Tensor:
    """An RGB image as (1, 3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def _resample(pixels: Tensor, axis: int, resized: int, offset: int, kept: int) -> Tensor:
    """Resize one axis of uint8 pixels to `resized` and keep `kept` of it from `offset` on; one pass of Pillow's two.

    The sums are of integers below 2^53: exact in float64, in any order.
    """
    source = pixels.shape[axis]
    if resized == source:
        return pixels.narrow(axis, offset, kept)
    weights = torch.from_numpy(bicubic_coefficients(source, resized, offset, kept)).to(pixels.device)
    lines = pixels.movedim(axis, -1)
    # In parts, for a line of bytes becomes eight times as long as numbers.
    parts = lines.split(max(1, _NUMBERS_AT_ONCE // max(1, source * lines[..., :1, 0].numel())), dim=-2)
    return torch.cat([_weigh(part, weights) for part in parts], dim=-2).movedim(-1, axis)


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
