"""Every way in which somebody's scorer can break the contract, and what is said then."""

import math

import pytest
import torch
from PIL import Image

from sp_rerank import check_scorer, rank
from sp_rerank.errors import HubUnavailableError, NothingUsableError, OptionError, UsageError
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.scorers.scoring import score_images


class Gives:
    """A scorer that gives what it is made with, whatever it is asked; an exception is raised."""

    def __init__(self, result, name="broken"):
        self.result, self.name = result, name

    def score(self, prompt, images):
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def pictures(count=4):
    return [Image.new("RGB", (8, 8), (20 * i, 0, 0)) for i in range(count)]


BROKEN = {
    "too few": (torch.zeros(3), "a score for each of 4 images, a tensor of shape (4,), got shape (3,)"),
    "too many": (torch.zeros(5), "got shape (5,)"),
    "a column": (torch.zeros(4, 1), "got shape (4, 1)"),
    "a scalar": (torch.tensor(1.0), "got shape ()"),
    "a list": ([1.0, 2.0, 3.0, 4.0], "got a list"),
    "None": (None, "got None"),
    "complex": (torch.zeros(4, dtype=torch.complex64), "got values of torch.complex64"),
    "an error": (KeyError("weights"), "scorer broken failed: KeyError: 'weights'"),
    "an error of two lines": (RuntimeError("one\ntwo"), "scorer broken failed: RuntimeError: one two"),
}


@pytest.mark.parametrize(("result", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_scorer_is_a_line_that_names_it(result, said):
    for images in (torch.zeros(4, 3, 8, 8), pictures()):
        with pytest.raises(UsageError) as caught:
            score_images(Gives(result), "a lemon", images)
        message = str(caught.value)
        assert message.startswith("scorer broken")
        assert said in message
        assert "sp_rerank.check_scorer names the rule" in message
        assert "\n" not in message
    with pytest.raises(UsageError, match="scorer broken"):
        rank(Gives(result), "a lemon", pictures())


@pytest.mark.parametrize("name", [None, "", 3])
def test_a_scorer_without_a_name_is_named_by_its_class(name):
    with pytest.raises(UsageError, match="scorer Gives: expected a name"):
        score_images(Gives(torch.zeros(4), name), "a lemon", pictures())


def test_a_scorer_whose_name_raises_is_named_by_its_class():
    class Nameless(BrightnessScorer):
        @property
        def name(self):
            raise OSError("no file")

    with pytest.raises(UsageError, match="scorer Nameless failed: OSError: no file"):
        score_images(Nameless(), "a lemon", pictures())


def test_errors_of_ours_keep_their_kind_and_get_the_name():
    with pytest.raises(HubUnavailableError, match="scorer broken: no answer"):
        score_images(Gives(HubUnavailableError("no answer")), "a lemon", pictures())
    with pytest.raises(UsageError, match="scorer broken: steps is 0; expected more"):
        score_images(Gives(OptionError("steps", 0, "more")), "a lemon", pictures())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: device-side assert triggered"),
        MemoryError(),
    ],
)
def test_errors_of_the_machine_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught:
        score_images(Gives(error), "a lemon", pictures())
    assert caught.value is error
    assert error.__cause__ is None
    assert error.__notes__ == ["raised by the scorer broken"]


def test_a_score_that_is_not_finite_is_nan_and_only_that_one():
    scores = score_images(Gives(torch.tensor([1.0, math.nan, math.inf, -math.inf])), "a lemon", pictures())
    assert scores[0] == 1.0
    assert all(map(math.isnan, scores[1:]))


def test_scores_that_are_all_nan_are_no_ranking():
    with pytest.raises(NothingUsableError, match="scorer broken: expected finite scores, got none for any of 4 images"):
        rank(Gives(torch.full((4,), math.nan)), "a lemon", pictures())


class Vandal(BrightnessScorer):
    """Scores the images right, and destroys them."""

    name = "vandal"

    def score(self, prompt, images):
        scores = super().score(prompt, images)
        if isinstance(images, torch.Tensor):
            images.zero_()
        else:
            for image in images:
                image.paste((0, 0, 0), (0, 0, *image.size))
        return scores


def test_what_a_scorer_does_to_its_images_changes_nothing_of_the_callers():
    images, before = torch.full((2, 3, 8, 8), 0.5), pictures()
    assert score_images(Vandal(), "a lemon", images) == [0.5, 0.5]
    assert bool((images == 0.5).all())
    score_images(Vandal(), "a lemon", before)
    assert [image.getpixel((0, 0)) for image in before] == [(20 * i, 0, 0) for i in range(4)]
    assert [entry.image.getpixel((0, 0))[0] for entry in rank(Vandal(), "a lemon", before)] == [60, 40, 20, 0]


@pytest.mark.parametrize("kind", ["tensor", "PIL images"])
def test_the_check_names_the_rule_that_a_destroyer_breaks(kind):
    class OfOne(Vandal):
        def score(self, prompt, images):
            scorer = super() if isinstance(images, torch.Tensor) == (kind == "tensor") else BrightnessScorer()
            return scorer.score(prompt, images)

    with pytest.raises(UsageError, match="breaks the rule 'untouched': expected the images as they were"):
        check_scorer(OfOne())


def test_no_images_have_no_scores():
    assert score_images(Gives(AssertionError()), "a lemon", []) == []
