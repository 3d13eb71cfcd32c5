"""When another candidate is not worth its steps: the rules that end an exhaustive run early, and why.

Knows scores and budgets. Knows nothing of how candidates are made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sp_rerank.config import StopRules
from sp_rerank.stats.lazy_scipy import scipy

FEWEST = 5  # scores before a distribution is fitted to them


def confidence(scores: Sequence[float], n: int, margin: float) -> float:
    """The probability that none of the candidates that are not made yet beats the best by more than a margin.

    Candidates of one prompt differ by their seeds alone, so they are exchangeable: without a margin the best of the
    first m of n is the best of all with probability m / n, whatever the distribution. With one it is the probability
    that n - m more draws of the normal distribution's predictive (Student's t) stay below, and never less than that. It
    errs to the low side, for the draws share a mean and a spread that are not known.

    Args:
        scores: Scores of the m candidates that are there; those that are not finite count as made and never win.
        n: candidates of the whole run.
        margin: 0 or more, in the scorer's scale; what it cannot tell apart.
    """
    finite = [score for score in scores if math.isfinite(score)]
    made, left = len(scores), n - len(scores)
    if not finite:
        return 1.0 if not left else 0.0
    plain = made / n
    if margin <= 0 or len(finite) < FEWEST:
        return plain
    count, mean = len(finite), sum(finite) / len(finite)
    spread = math.sqrt(sum((score - mean) ** 2 for score in finite) / (count - 1))
    if spread == 0:
        return 1.0
    beyond = (max(finite) + margin - mean) / (spread * math.sqrt(1 + 1 / count))
    return max(plain, float(scipy("stats").t.cdf(beyond, count - 1)) ** left)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a run has spent so far, and what it would spend next.

    Attributes:
        nfe: Evaluations of the denoiser so far.
        next_nfe: Evaluations that another batch takes.
        seconds: Since the run began.
    """

    nfe: int
    next_nfe: int
    seconds: float


def reason_to_stop(
    rules: StopRules, scores: Sequence[float], n: int, *, margin: float, spent: Spent
) -> tuple[Literal["confidence", "max_evaluations", "max_seconds"], str] | None:
    """Which rule ends a run here, with its figures in words; None if the run goes on.

    Args:
        rules: Those of the run.
        scores: Of the candidates so far; NaN where one is not usable.
        n: Number of candidates of the whole run.
        margin: Gap of scores below which the scorer cannot tell two candidates apart; 0 without a calibration.
        spent: What the run has spent.
    """
    if len(scores) >= n:
        return None
    if rules.max_evaluations is not None and spent.nfe + spent.next_nfe > rules.max_evaluations:
        most = rules.max_evaluations
        return "max_evaluations", f"{spent.nfe} evaluations are spent, another batch would pass {most}"
    if rules.max_seconds is not None and spent.seconds >= rules.max_seconds:
        return "max_seconds", f"{spent.seconds:.0f} of {rules.max_seconds:g} seconds are spent"
    if rules.confidence is None:
        return None
    sure = confidence(scores, n, margin)
    if sure <= rules.confidence:
        return None
    beyond = f" by more than {margin:.3g}, which the scorer cannot tell apart" if margin else ""
    return "confidence", f"with probability {sure:.2f} none of the other {n - len(scores)} beats the best{beyond}"
