"""How far a person's answers agree with themselves and with a scorer, each figure with its interval.

Intervals are exact ones of the binomial distribution (Clopper and Pearson 1934), 95 %. Knows answers; knows no page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sp_rerank.choosing.store import Answer
from sp_rerank.stats.agreement import CONFIDENCE
from sp_rerank.stats.lazy_scipy import scipy

ENOUGH = 20
"""Repeats before a figure is made of them: of twenty the interval is still .2 to either side."""

FAST_MS = 300
"""An answer in less time is counted as fast: hardly both images were looked at."""


@dataclass(frozen=True, slots=True)
class Share:
    """A share of a number of cases with its interval; all of 0 cases has the interval 0..1."""

    count: int
    of: int

    @property
    def value(self) -> float:
        """The share; NaN of no case."""
        return self.count / self.of if self.of else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end."""
        if not self.of:
            return 0.0, 1.0
        found = scipy("stats").binomtest(self.count, self.of).proportion_ci(CONFIDENCE, method="exact")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        """For example "31 of 42 [.58, .86]"."""
        low, high = (f"{end:.2f}".removeprefix("0") for end in self.interval)
        return f"{self.count} of {self.of} [{low}, {high}]"


@dataclass(frozen=True, slots=True)
class Consistency:
    """What can be told of a person's answers.

    Attributes:
        answered: Number of answers, skipped questions left out.
        skipped: Number of skipped questions.
        ties: Number of answers that neither is better, those among them that both are bad.
        fast: Number of answers in less than FAST_MS.
        repeats: Hidden repeats, and how many of them got the same answer.
        left: Answers that one image is better, and how often it was the left one.
        scorer: Answers that one image is better to pairs that a scorer orders, and how often it is the same.
    """

    answered: int
    skipped: int
    ties: int
    fast: int
    repeats: Share
    left: Share
    scorer: Share


def consistency(answers: Sequence[Answer], score: Callable[[str, str], float | None]) -> Consistency:
    """What can be told of a person's answers.

    Args:
        answers: Of one person.
        score: Gives a scorer's score of an image by prompt and SHA-256; None where there is none.
    """
    given = [answer for answer in answers if answer.label is not None]
    by_id = {answer.id: answer for answer in given}
    repeats = [(answer, by_id[answer.repeat_of]) for answer in given if answer.repeat_of in by_id]
    decided = [answer for answer in given if answer.label != 0.5]
    compared = [right for answer in decided if (right := _agrees(answer, score)) is not None]
    return Consistency(
        answered=len(given),
        skipped=len(answers) - len(given),
        ties=len(given) - len(decided),
        fast=sum(answer.answered_ms < FAST_MS for answer in given),
        repeats=Share(sum(again.label == before.label for again, before in repeats), len(repeats)),
        left=Share(sum((answer.label == 1) == (answer.first_side == "left") for answer in decided), len(decided)),
        scorer=Share(sum(compared), len(compared)),
    )


def _agrees(answer: Answer, score: Callable[[str, str], float | None]) -> bool | None:
    """Whether a scorer prefers the same image; None where it prefers none."""
    first, second = (score(answer.prompt, sha256) for sha256 in (answer.first, answer.second))
    if first is None or second is None or first == second:
        return None
    return (first > second) == (answer.label == 1)


def sentences(found: Consistency) -> list[str]:
    """What a person should hear of their own answers, in plain lines; nothing that is not known well enough."""
    lines: list[str] = []
    if found.scorer.of:
        lines.append(f"the scorer would have said the same in {found.scorer}")
    if found.repeats.of >= ENOUGH:
        lines.append(f"the same answer to a repeated question in {found.repeats}")
    low, high = found.left.interval
    if found.left.of >= ENOUGH and not low <= 0.5 <= high:
        side = "left" if found.left.value > 0.5 else "right"
        lines.append(f"the {side} image was chosen more often than chance would: left in {found.left}")
    if found.fast:
        answers = "answer" if found.fast == 1 else "answers"
        lines.append(f"{found.fast} {answers} in less than {FAST_MS / 1000:g} s")
    return lines
