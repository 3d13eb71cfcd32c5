"""How far our scores are from the original's, printed so that `table.py` can find it."""

from typing import Any

import numpy as np
from PIL import Image

MARK = "parity |"


def difference(scorer: str, original: str, ours: Any, theirs: Any) -> float:
    """The largest difference, as a share of the standard deviation of the original's scores."""
    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    share = float(np.abs(ours - theirs).max() / theirs.std())
    print(f"\n{MARK} {scorer} | {original} | {theirs.size} | {theirs.std():.3g} | {share:.1e} |")
    return share


def as_originals_read(image: Image.Image) -> Image.Image:
    """RGB without a turn or a background: the originals look at no EXIF data and drop the transparency."""
    return Image.fromarray(np.asarray(image.convert("RGB")))
