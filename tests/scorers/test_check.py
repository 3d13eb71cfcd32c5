from collections.abc import Sequence
from typing import Any

import pytest
import torch

from sp_rerank.errors import UsageError
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.scorers.check import check_scorer


class Broken(BrightnessScorer):
    """A good scorer, spoiled in one way by the subclass."""

    name = "broken"

    def score(self, prompt: Any, images: Any) -> Any:
        return self.spoil(super().score(prompt, images), prompt, images)

    def spoil(self, scores: torch.Tensor, prompt: Any, images: Any) -> Any:
        return scores


class Nameless(Broken):
    name = ""


class TensorsOnly(Broken):
    def spoil(self, scores: torch.Tensor, prompt: Any, images: Any) -> Any:
        return scores + 0 * images.mean()


class OnePromptOnly(Broken):
    def spoil(self, scores: torch.Tensor, prompt: Any, images: Any) -> Any:
        return scores + 0 * len(prompt.strip())


class Column(Broken):
    def spoil(self, scores: torch.Tensor, prompt: Any, images: Any) -> Any:
        return scores[:, None]


class PlainList(Broken):
    def spoil(self, scores: torch.Tensor, prompt: Any, images: Any) -> Any:
        return scores.tolist()


class Double(Broken):
    def spoil(self, scores: torch.Tensor, prompt: Any, images: Any) -> Any:
        return scores.double()


class Elsewhere(Broken):
    def spoil(self, scores: torch.Tensor, prompt: Any, images: Any) -> Any:
        return scores.to("meta")


class WithGradient(Broken):
    weight = torch.nn.Parameter(torch.ones(()))

    def spoil(self, scores: torch.Tensor, prompt: Any, images: Any) -> Any:
        return scores * self.weight


class NotFinite(Broken):
    def spoil(self, scores: torch.Tensor, prompt: Any, images: Any) -> Any:
        return scores.log().where(scores > scores.mean(), torch.nan)


class Counting(Broken):
    calls = 0

    def spoil(self, scores: torch.Tensor, prompt: Any, images: Any) -> Any:
        self.calls += 1
        return scores + self.calls


class ListsAreDifferent(Broken):
    def spoil(self, scores: torch.Tensor, prompt: Any, images: Any) -> Any:
        return scores + (not isinstance(prompt, str))


class PicturesAreDifferent(Broken):
    def spoil(self, scores: torch.Tensor, prompt: Any, images: Any) -> Any:
        return scores * (1 if isinstance(images, torch.Tensor) else 255)


class ByPlace(Broken):
    def spoil(self, scores: torch.Tensor, prompt: Any, images: Any) -> Any:
        return scores + torch.arange(len(scores)) / 100


class RelativeToTheBatch(Broken):
    def spoil(self, scores: torch.Tensor, prompt: Any, images: Any) -> Any:
        return scores - scores.mean()


class Wipes(Broken):
    def spoil(self, scores: torch.Tensor, prompt: Any, images: Any) -> Any:
        if isinstance(images, torch.Tensor):
            images.zero_()
        return scores


RULES: Sequence[tuple[type[Broken], str]] = (
    (Nameless, "name"),
    (TensorsOnly, "inputs"),
    (OnePromptOnly, "inputs"),
    (Column, "shape"),
    (PlainList, "shape"),
    (Double, "dtype"),
    (Elsewhere, "device"),
    (WithGradient, "gradient"),
    (NotFinite, "finite"),
    (Counting, "deterministic"),
    (ListsAreDifferent, "prompts"),
    (PicturesAreDifferent, "formats"),
    (ByPlace, "order"),
    (RelativeToTheBatch, "batch size"),
    (Wipes, "untouched"),
)


@pytest.mark.parametrize(("scorer", "rule"), RULES, ids=[scorer.__name__ for scorer, _ in RULES])
def test_a_broken_scorer_is_told_which_rule_it_breaks(scorer: type[Broken], rule: str):
    with pytest.raises(UsageError, match=f"breaks the rule '{rule}'"):
        check_scorer(scorer())


def test_a_good_scorer_passes():
    check_scorer(Broken())
