"""What the figures of a run's page show, as numbers: picks, agreement of two scorers, best of n, what a search spent.

Knows orderings and a run's rows. Knows nothing of pages; the geometry is in `sp_rerank.report.charts`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sp_rerank.report import charts
from sp_rerank.report.orderings import Ordering
from sp_rerank.run.folder import RunDir
from sp_rerank.stats import agreement, best_of_n
from sp_rerank.stats.agreement import Array

PICKS = 4  # shown large where all scorers agree on the best


def picks_of(orderings: Sequence[Ordering], first: Sequence[int]) -> dict[int, list[Ordering]]:
    """The candidates to show large, each with the scorers that rank it first; of a single scorer its best ones."""
    picks: dict[int, list[Ordering]] = {}
    for ordering in orderings:
        picks.setdefault(ordering.order[0], []).append(ordering)
    if len(picks) == 1:
        picks |= {index: [] for index in first[1:PICKS] if index in orderings[0].scores}
    return picks


def pairs_of(orderings: Sequence[Ordering]) -> list[dict[str, Any]]:
    """Every scorer against every other: the scatter, their agreement, and where each one's pick stands."""
    pairs = []
    for place, a in enumerate(orderings):
        for b in orderings[place + 1 :]:
            both = [index for index in a.scores if index in b.scores]
            if len(both) < 2:
                continue
            points = [(a.scores[i], b.scores[i]) for i in both]
            picks = [index for index in dict.fromkeys((a.order[0], b.order[0])) if index in both]
            marked = [(a.scores[i], b.scores[i]) for i in picks]
            k = min(10, len(both))
            xs, ys = zip(*points, strict=True)
            pairs.append({
                "a": a,
                "b": b,
                "picks": picks,
                "chart": charts.scatter(points, marked),
                "kendall": agreement.kendall(xs, ys),
                "k": k,
                "shared": round(agreement.top_k_overlap(xs, ys, k) * k),
            })
    return pairs


def curve_of(picking: Ordering, orderings: Sequence[Ordering]) -> dict[str, Any] | None:
    """The expected score of the best of n, by the scorer that picks and by the others, between their mean and best."""
    scores = list(picking.scores.values())
    own = best_of_n.expected_best(scores)
    if len(own) < 2 or not own[-1] > own[0]:
        return None
    others = [other for other in orderings if other is not picking and other.scores.keys() == picking.scores.keys()]
    series, labels = [_share(own, own)], [picking.label]
    for other in others:
        values = [other.scores[index] for index in picking.scores]
        theirs = best_of_n.expected_best(values)
        if theirs[-1] > theirs[0]:
            series.append(_share(best_of_n.expected_best(scores, values), theirs))
            labels.append(other.label)
    shown = [n for n in (1, 4, 10, 100) if n < len(own)] + [len(own)]
    return {
        "by": picking,
        "chart": charts.curves(series, best_of_n.n_for_gain(own)),
        "labels": labels,
        "ends": [values[-1] for values in series],
        "values": [(n, picking.text(own[n - 1])) for n in shown],
        "reached": best_of_n.n_for_gain(own),
    }


def _share(curve: Array, own: Array) -> list[float]:
    """A curve as percent of the way from a scorer's mean candidate to its best one."""
    return [float(value) for value in (curve - own[0]) / (own[-1] - own[0]) * 100]


def budget_of(run: RunDir) -> dict[str, Any] | None:
    """What a search spent, in evaluations of the denoiser, against what all candidates with all steps would take."""
    finished = [row for row in run.rows.values() if row.status != "dropped"]
    if not any(row.stages for row in run.rows.values()):
        return None
    spent, exhaustive = run.nfe, run.nfe_each * len(run.rows)
    if not exhaustive:
        return None
    stages = Counter(seen.stage.label for row in run.rows.values() for seen in row.stages)
    return {
        "spent": spent,
        "exhaustive": exhaustive,
        "share": spent / exhaustive,
        "counts": [*stages.items(), ("all steps", len(finished))],
    }
