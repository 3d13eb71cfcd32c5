"""When another candidate is not worth its steps: the rules that end an exhaustive run early, and why.

Knows scores and budgets. Knows nothing of how candidates are made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sp_rerank.errors import UsageError

FEWEST = 5  # scores before a distribution is fitted to them


def parse_until(text: str) -> float:
    """The probability in a rule like "p>0.9".

    Raises:
        UsageError: if it is no such rule.
    """
    found = re.fullmatch(r"\s*p\s*>\s*(0?\.\d+)\s*", text)
    if not found or not 0 < float(found[1]) < 1:
        raise UsageError(f'--until is {text!r}; expected a rule like "p>0.9", the number between 0 and 1')
    return float(found[1])


def confidence(scores: Sequence[float], n: int, margin: float) -> float:
    """The probability that none of the candidates that are not made yet beats the best by more than a margin.

    Candidates of one prompt differ by their seeds alone, so they are exchangeable: without a margin the best of the
    first m of n is the best of all with probability m / n, whatever the distribution. With one it is the probability
    that n - m more draws of the normal distribution's predictive (Student's t) stay below, and never less than that. It
    errs to the low side, for the draws share a mean and a spread that are not known.

    Args:
        scores: of the m candidates that are there; those that are not finite count as made and never win.
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
    from scipy import stats  # two seconds of a CPU, which commands that only refuse an argument need not pay

    beyond = (max(finite) + margin - mean) / (spread * math.sqrt(1 + 1 / count))
    return max(plain, float(stats.t.cdf(beyond, count - 1)) ** left)


def reason_to_stop(
    rules: Mapping[str, Any],
    scores: Sequence[float],
    n: int,
    *,
    margin: float,
    spent: int,
    next_batch: int,
    seconds: float,
) -> str | None:
    """Why a run ends here, in words; None if it goes on.

    Args:
        rules: "until", "max_evaluations" and "max_seconds", each optional, as in a run's configuration.
        scores: of the candidates so far.
        n: candidates of the whole run.
        margin: what the scorer cannot tell apart; 0 if it has no calibration.
        spent: evaluations of the denoiser so far.
        next_batch: evaluations that another batch takes.
        seconds: since the run began.
    """
    if len(scores) >= n:
        return None
    if rules.get("max_evaluations") and spent + next_batch > rules["max_evaluations"]:
        return f"{spent} evaluations are spent, another batch would pass {rules['max_evaluations']}"
    if rules.get("max_seconds") and seconds >= rules["max_seconds"]:
        return f"{seconds:.0f} of {rules['max_seconds']:g} seconds are spent"
    sure = confidence(scores, n, margin)
    if rules.get("until") and sure > rules["until"]:
        beyond = f" by more than {margin:.3g}, which the scorer cannot tell apart" if margin else ""
        return f"with probability {sure:.2f} none of the other {n - len(scores)} beats the best{beyond}"
    return None
