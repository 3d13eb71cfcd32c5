"""HP&CC, pixel by pixel."""

import numpy as np
import pytest
from PIL import Image

from sp_rerank.storage.perturbation import RATIOS, flip_and_crop


@pytest.mark.parametrize("ratio", [*RATIOS, 0.5, 0.001])
def test_hp_cc_mirrors_and_keeps_the_middle(ratio):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 101, 3), dtype=np.uint8)
    result = np.asarray(flip_and_crop(Image.fromarray(pixels), ratio))
    height, width = max(1, round(40 * ratio)), max(1, round(101 * ratio))
    top, left = (40 - height) // 2, (101 - width) // 2
    assert np.array_equal(result, pixels[:, ::-1][top : top + height, left : left + width])


def test_a_flip_and_a_crop_by_hand():
    pixels = np.arange(5 * 10 * 3, dtype=np.uint8).reshape(5, 10, 3)
    cropped = np.asarray(flip_and_crop(Image.fromarray(pixels), 0.6))
    assert np.array_equal(cropped, pixels[1:4, ::-1][:, 2:8])
    assert flip_and_crop(Image.new("RGB", (1, 3)), 0.1).size == (1, 1)
