"""How each scorer of a run orders its candidates, and whether they are a chance sample.

Knows a run's rows and calibrations. Knows nothing of images, figures or pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sp_rerank.config import STEERING
from sp_rerank.run.folder import RunDir
from sp_rerank.scorers.calibration import calibration_of
from sp_rerank.stats import ranking

LARGEST = 3.5e38  # a score is a float32; a number in a manifest that is none is no score


@dataclass(frozen=True, slots=True)
class Ordering:
    """All candidates of a run as one scorer orders them.

    Attributes:
        name: The scorer's full name.
        label: The part of the name that tells the run's scorers apart.
        digits: Number of decimal places of a score, as many as tell candidates apart.
        scores: By index, finite ones of usable candidates only.
        order: Indices of all candidates, those with a rank first; the others by how far they came.
        groups: Tie group of each place that has a rank; None where the scorer has no calibration.
    """

    name: str
    label: str
    digits: int
    scores: dict[int, float]
    order: tuple[int, ...]
    groups: tuple[int, ...] | None
    _ranks: dict[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ranks = {index: rank for rank, index in enumerate(self.order, start=1) if index in self.scores}
        object.__setattr__(self, "_ranks", ranks)

    def text(self, score: float) -> str:
        """A score of this scorer as it is shown."""
        return f"{score:.{self.digits}f}"

    def rank(self, index: int) -> int | None:
        """1 = best; None for a candidate that is not ranked."""
        return self._ranks.get(index)


def orderings_of(run: RunDir) -> list[Ordering]:
    """How each scorer of a run orders its candidates; the one that selected comes first.

    A scorer without a finite score of a usable candidate is left out.
    """
    names = dict.fromkeys([*run.config.scorers, *(name for row in run.rows.values() for name in row.scores)])
    labels = ranking.short_names(names)
    orderings = []
    for name in names:
        scores = {
            index: score
            for index, row in sorted(run.rows.items())
            if row.status == "ok" and (score := row.scores.get(name)) is not None and abs(score) <= LARGEST
        }
        if scores:
            orderings.append(_ordering(run, name, labels[name], scores))
    return orderings


def _ordering(run: RunDir, name: str, label: str, scores: dict[int, float]) -> Ordering:
    indices, values = list(scores), list(scores.values())
    ranked = [indices[place] for place in ranking.order(values)]
    calibration = calibration_of(name)
    groups = ranking.tie_groups([scores[i] for i in ranked], calibration.margin) if calibration else None
    order = (*ranked, *unranked(run, set(ranked)))
    return Ordering(name, label, digits_of(values), scores, order, tuple(groups) if groups else None)


def digits_of(scores: Sequence[float]) -> int:
    """Decimal places of a score: so many that the range of the scores is shown in a few hundred steps."""
    spread = max(scores) - min(scores)
    return min(6, max(1, 2 - math.floor(math.log10(spread)))) if spread > 0 else 3


def unranked(run: RunDir, ranked: set[int]) -> list[int]:
    """Candidates without a rank: those that only lack a score, then dropped (farthest first), flagged, broken ones."""
    kinds = ("ok", "dropped", "flagged", "nonfinite")

    def key(index: int) -> tuple[int, int, float, int]:
        row = run.rows[index]
        last = row.stages[-1].score if row.stages else None
        return kinds.index(row.status), -len(row.stages), math.inf if last is None else -last, index

    return sorted((index for index in run.rows if index not in ranked), key=key)


def is_chance_sample(run: RunDir) -> bool:
    """Whether the finished candidates are independent draws: any seeds would have made such ones.

    A search that drops candidates leaves the promising ones, and steered candidates descend from each other: what the
    best of n is expected to score does not follow from either. While a search goes on no row holds yet who was dropped.
    """
    search = run.config.search
    goes_on = bool(run.missing) and search.drops
    return not goes_on and search.strategy != STEERING and all(row.status != "dropped" for row in run.rows.values())
