"""What a picture becomes before an encoder sees it: quantized, resized, made square, normalized.

Knows nothing of models. There are three geometries, because the scorers' originals have three:

- "center_crop", of CLIP and most others, resizes the image with Pillow's bicubic, on any device and bit for bit; see
  `sp_rerank.storage.pillow_resize`.
- "squash", of BLIP's own evaluation, does so without regard to the proportions.
- "longest_edge_pad", of HPS v2 and v2.1, resizes the float tensor with torch and pads it to a square.

For a gradient to the pixels each has a differentiable form: the same weights on floats, nothing rounded to 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sp_rerank.errors import UsageError
from sp_rerank.storage.images import are_finite, bands, seen_rgb, to_bytes
from sp_rerank.storage.pillow_resize import Cut, bytes_of, resample_floats, resize_image, resize_pixels

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

GEOMETRIES = ("center_crop", "squash", "longest_edge_pad")

_OFFSETS = {"round": lambda margin: round(margin / 2), "floor": lambda margin: margin // 2}


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
            UsageError: if a tensor is not of shape (n, 3, H, W) or not of floats, or a gradient is asked for to others.
        """
        if differentiable:
            return self._with_gradient(images, device)
        with torch.no_grad():
            if isinstance(images, Tensor):
                return self._from_floats(images.to(device or images.device))
            if not images:
                return torch.empty(0, 3, self.size, self.size, device=device)
            where = torch.device(device or "cpu")
            return self._normalize(torch.cat([self._from_image(seen_rgb(image), where) for image in images]))

    def _from_image(self, image: Image.Image, device: torch.device) -> Tensor:
        """As `_from_bytes`, of an RGB image, of which no more than a band is ever a tensor."""
        if self.geometry != "longest_edge_pad":
            return resize_image(image, *self._cuts(image.size), device)
        # Each row of the horizontal pass is by itself.
        narrow = [self._shrink(bytes_of(band).to(device), -1, image.size) for band, _ in bands(image)]
        return self._pad(self._shrink(torch.cat(narrow, dim=-2), -2, image.size))

    def _from_floats(self, images: Tensor) -> Tensor:
        _check_floats(images)
        square = self._normalize(self._from_bytes(to_bytes(images)))
        return square.masked_fill_(~are_finite(images)[:, None, None, None], torch.nan)

    def _with_gradient(self, images: Tensor | Sequence[Image.Image], device: torch.device | str | None) -> Tensor:
        """As `_from_floats`, of floats all the way."""
        if not isinstance(images, Tensor):
            raise UsageError(f"images: expected a tensor, for a gradient to its pixels, got a {type(images).__name__}")
        _check_floats(images)
        pixels = images.to(device or images.device).float().nan_to_num(0, 0, 0).clamp(0, 1)
        size = (pixels.shape[-1], pixels.shape[-2])
        if self.geometry == "longest_edge_pad":
            square = self._pad(self._shrink(self._shrink(pixels, -1, size), -2, size))
        else:
            across, down = self._cuts(size)
            square = resample_floats(resample_floats(pixels, -1, across), -2, down)
        return self._normalize(square).masked_fill(
            ~are_finite(images)[:, None, None, None].to(square.device), torch.nan
        )

    def _from_bytes(self, pixels: Tensor) -> Tensor:
        """(n, 3, H, W) uint8 -> (n, 3, size, size), not normalized yet: uint8, or floats of a padded square."""
        size = (pixels.shape[-1], pixels.shape[-2])
        if self.geometry == "longest_edge_pad":
            return self._pad(self._shrink(self._shrink(pixels, -1, size), -2, size))
        return resize_pixels(pixels, *self._cuts(size))

    def _normalize(self, square: Tensor) -> Tensor:
        """With torchvision's order of operations."""
        floats = square if square.is_floating_point() else square.float().div_(255)
        mean, std = (floats.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return floats.sub(mean).div_(std)

    def _cuts(self, size: tuple[int, int]) -> tuple[Cut, Cut]:
        """What becomes of the width and the height of an image of this size."""
        wide, high = (self.size if self.geometry == "squash" else int(self.size * edge / min(size)) for edge in size)
        offset = _OFFSETS[self.crop]
        return Cut(wide, offset(wide - self.size), self.size), Cut(high, offset(high - self.size), self.size)

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
