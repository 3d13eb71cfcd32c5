"""Pictures of every kind that a resize can get wrong, drawn from a seed."""

import numpy as np
from PIL import Image

KINDS = ("noise", "gradient", "photo", "checks", "extremes", "saturated")


def picture(kind: str, width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB image."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((height, width))
    values = {
        "noise": rng.integers(0, 256, (height, width, 3)),
        "gradient": np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=-1),
        # Smooth in the large, rough in the small, as most photographs are.
        "photo": (rng.normal(0, 1, (height, width, 3)).cumsum(0).cumsum(1) + rng.normal(128, 8, (height, width, 3)))
        % 256,
        "checks": np.repeat(((rows + columns) % 2 * 255)[..., None], 3, axis=-1),
        "extremes": rng.integers(0, 2, (height, width, 3)) * 255,
        "saturated": np.broadcast_to([255, 0, 255 * (seed % 2)], (height, width, 3)),
    }[kind]
    return Image.fromarray(values.astype(np.uint8))
