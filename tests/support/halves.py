"""Pictures of two halves, and scorers that mind their sides or not."""

import numpy as np
import torch
from PIL import Image

from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.train.preferences import ImageSource

BRIGHTNESS = BrightnessScorer()


class Corner:
    """The brightness of the pixel in the upper left corner: minds every flip."""

    name = "corner"

    def score(self, prompt, images):
        return torch.tensor([image.getpixel((0, 0))[0] / 255 for image in images])


class Darkness:
    name = "darkness"

    def score(self, prompt, images):
        return 1 - BRIGHTNESS.score(prompt, images)


def put(path, left, right):
    """8 x 4 pixels, the left half and the right half of a level each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((4, 8, 3), left, np.uint8)
    pixels[:, 4:] = right
    Image.fromarray(pixels).save(path)
    return ImageSource(path)
