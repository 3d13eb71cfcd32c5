"""What should not change a judgment of an image: mirroring it, and cutting off its margin.

Knows Pillow. Knows nothing of scorers, files or training.
"""

from __future__ import annotations

from PIL import Image, ImageOps

RATIOS = (1.0, 0.97, 0.95, 0.93, 0.9)
"""Of the sides after the crop of HP&CC (Li, Niu, Zhao, ECCV 2024, the authors' slides); 1 is the flip alone."""


def flip_and_crop(image: Image.Image, ratio: float, *, flip: bool = True) -> Image.Image:
    """HP&CC: the image flipped horizontally and its center cropped to `ratio` of both sides, at least one pixel."""
    flipped = ImageOps.mirror(image) if flip else image
    width, height = (max(1, round(side * ratio)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return flipped.crop((left, top, left + width, top + height))
