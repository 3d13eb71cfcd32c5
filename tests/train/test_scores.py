"""Each image is scored once, in batches that reach across groups, and a scorer that misbehaves is named."""

import math

import numpy as np
import pytest
import torch
from support.scored_groups import gray

from sp_rerank.errors import NothingUsableError, UsageError
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.train.evaluate import evaluate
from sp_rerank.train.preferences import ImageReader, Pair, PreferenceGroup
from sp_rerank.train.scores import score_groups

BRIGHTNESS = BrightnessScorer()


class Spy:
    """Brightness, and the sizes of the batches."""

    name = "spy"

    def __init__(self):
        self.batches = []

    def score(self, prompt, images):
        self.batches.append(list(prompt))
        return BRIGHTNESS.score(prompt, images)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_each_image_is_scored_once_in_batches_across_groups(tmp_path, batch_size):
    groups = [
        PreferenceGroup.ranked("a", gray(tmp_path / "a", 10, None, 30, 50), [3, 2, 2, 1]),
        PreferenceGroup.ranked("b", gray(tmp_path / "b", None, 70), [1, 2]),
        PreferenceGroup.ranked("c", gray(tmp_path / "c", 5, 250), [2, 1], [[1, 2], [2, 1]]),
    ]
    spy, reader, done = Spy(), ImageReader(), []
    result = list(
        score_groups(
            spy,
            iter(groups),
            reader=reader,
            batch_size=batch_size,
            views=[lambda image: image, lambda image: image.point(lambda v: 255 - v)],
            progress=done.append,
        )
    )
    assert [group.prompt for group in result] == ["a", "c"]
    assert np.round(result[0].scores * 255).tolist() == [[10, 30, 50], [245, 225, 205]]
    assert np.round(result[1].scores * 255).tolist() == [[5, 250], [250, 5]]
    assert result[0].ranks == (3, 2, 1)
    assert result[0].pairs == (Pair(0, 1, 0), Pair(0, 2, 0), Pair(1, 2, 0))
    assert result[1].annotations == ((1, 2), (2, 1))
    assert [prompt for batch in spy.batches for prompt in batch] == [*"aaaaaabbcccc"]
    assert {len(batch) for batch in spy.batches[:-1]} <= {batch_size}
    assert len(reader.skipped) == 2
    assert done == list(range(1, 9))


def test_groups_are_finished_as_they_come(tmp_path):
    taken = []

    def groups():
        for name in "abcdef":
            taken.append(name)
            yield PreferenceGroup.ranked(name, gray(tmp_path / name, 1, 2), [1, 2])

    next(score_groups(BRIGHTNESS, groups(), reader=ImageReader(), batch_size=4))
    assert taken == ["a", "b"]


class Broken:
    name = "broken"

    def __init__(self, scores):
        self.scores = scores

    def score(self, prompt, images):
        return torch.tensor(self.scores[: len(images)])


def test_a_scorer_that_misbehaves(tmp_path):
    groups = [PreferenceGroup.ranked("a", gray(tmp_path, 1, 2, 3), [1, 2, 3])]
    with pytest.raises(UsageError, match=r"scorer broken: expected a score for each of 3 images.* got shape \(2,\)"):
        evaluate(Broken([0.0, 1.0]), groups, data="x")
    evaluation = evaluate(Broken([math.inf, 1.0, math.nan]), groups, data="x")
    assert (evaluation.nonfinite, evaluation.micro.value, evaluation.macro.value) == (2, 0, 0)
    with pytest.raises(NothingUsableError, match="1 images cannot be read"):
        evaluate(BRIGHTNESS, [PreferenceGroup.ranked("a", gray(tmp_path, 1, None), [1, 2])], data="x")
