"""Groups with scores that a test names, and gray images on the disk."""

import numpy as np
from PIL import Image

from sp_rerank.train.preferences import ImageSource, PreferenceGroup
from sp_rerank.train.scores import ScoredGroup


def scored(ranks, scores, prompt="x", annotations=()):
    group = PreferenceGroup.ranked(prompt, [ImageSource(prompt, str(i)) for i in range(len(ranks))], ranks)
    return ScoredGroup(prompt, group.pairs, group.ranks, annotations, np.array([scores], float))


def gray(folder, *levels):
    """An image file a level; None is one that cannot be read."""
    sources = []
    for number, level in enumerate(levels):
        path = folder / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if level is None:
            path.write_text("not an image")
        else:
            Image.new("L", (4, 4), level).save(path)
        sources.append(ImageSource(path))
    return sources
