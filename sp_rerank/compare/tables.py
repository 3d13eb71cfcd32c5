"""A comparison of scorers in words, tables and a plot. Knows nothing of how it was made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sp_rerank.compare.comparison import Comparison, MeanAgreement, PairAgreement, Robustness, RunComparison, ScorerView
from sp_rerank.report.tables import add_legend, new_figure, percent, plain, table, to_svg
from sp_rerank.stats.agreement import Estimate
from sp_rerank.stats.best_of_n import ENOUGH
from sp_rerank.stats.ranking import ordinal, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNKNOWN_TIES = "no calibration: ties unknown"
SHOWN = 6  # candidates of a tie group that a sentence names


def markdown(comparison: Comparison) -> str:
    """Sentences and tables for people: run by run, then what holds on the average of several."""
    names = short_names(comparison.scorers)
    parts = [part for run in comparison.runs for part in _of_run(run, names)]
    return "\n".join([*parts, *_of_all(comparison, names)])


def _of_run(run: RunComparison, names: dict[str, str]) -> Iterator[str]:
    yield f"## {plain(run.run)}\n\n{run.prompt!r}: {len(run.seeds)} of {run.n} candidates compared\n"
    yield "".join(f"- {sentence}\n" for sentence in _sentences(run, names))
    yield _picks(run, names)
    if run.pairs:
        yield _agreements(run, names)
    if any(view.robustness for view in run.views):
        yield _robustness(run, names)
    if run.problems:
        yield "Left out\n\n" + "".join(f"- {plain(problem)}\n" for problem in run.problems)


def _sentences(run: RunComparison, names: dict[str, str]) -> Iterator[str]:
    for view in run.views:
        best = view.order[0]
        chosen = f"{plain(names[view.scorer])} would have chosen candidate {best} (seed {run.seeds[best]})"
        yield f"{chosen}; {_ties(run, view)}"
    if len(run.views) > 1 and run.ensemble:
        best = run.ensemble[0]
        rank = ", ".join(f"{names[view.scorer]} {ordinal(view.order.index(best) + 1)}" for view in run.views)
        yield f"by the mean of all ranks it is candidate {best} (seed {run.seeds[best]}): {rank}"
    if not run.chance_sample:
        yield (
            "the search dropped or steered candidates, so that these are no chance sample: the best of n and the way "
            "from the mean candidate to the best are left out"
        )


def _ties(run: RunComparison, view: ScorerView) -> str:
    tied, calibration = view.tied_first, view.calibration
    if tied is None or calibration is None:
        return UNKNOWN_TIES
    if len(view.order) < 2:
        return "there is no other"
    first, second = (run.scores[view.scorer][index] or 0.0 for index in view.order[:2])
    people = "simulated people" if calibration.simulated else "people"
    sure = f"{calibration.preferred(first - second):.0%} of {people} would prefer it to the second"
    if len(tied) == 1:
        others = "all others" if len(view.order) == len(run.seeds) else "all others that it has a score for"
        return f"it is told apart from {others}: {sure}"
    if len(tied) == len(view.order):
        return f"none of the {len(tied)} is told apart from it: {sure}"
    shown = ", ".join(map(str, tied[:SHOWN])) + (", ..." if len(tied) > SHOWN else "")
    return f"the first {len(tied)} are not told apart ({shown}): {sure}"


def _picks(run: RunComparison, names: dict[str, str]) -> str:
    head = ["scorer", "its pick", "not told apart", f"{ENOUGH:.0%} of the gain at n ="]
    head += [f"by {names[view.scorer]}" for view in run.views]
    rows = []
    for view in run.views:
        tied = "?" if view.tied_first is None else str(len(view.tied_first))
        n_for_gain = "?" if view.n_for_gain is None else str(view.n_for_gain)
        cells = [names[view.scorer], str(view.order[0]), tied, n_for_gain]
        rows.append([*cells, *(_standing(view, other.scorer) for other in run.views)])
    title = "The picks by every scorer: the rank"
    if run.chance_sample:
        title += ", and the way from the mean candidate to the best"
    return f"{title}\n\n{table(head, rows)}"


def _standing(view: ScorerView, other: str) -> str:
    rank, gain = view.rank_by[other], view.normalized_gain[other] if view.normalized_gain else math.nan
    return "" if rank is None else ordinal(rank) + ("" if math.isnan(gain) else f", {gain:.0%}")


def _agreements(run: RunComparison, names: dict[str, str]) -> str:
    ks = list(dict.fromkeys(k for pair in run.pairs for k in pair.overlap))
    rows = [
        [
            " and ".join(names[scorer] for scorer in pair.scorers),
            *map(_interval, (pair.kendall, pair.spearman)),
            *(f"{pair.overlap[k]:.0%}" if k in pair.overlap else "" for k in ks),
            str(pair.kendall.n),
        ]
        for pair in run.pairs
    ]
    head = ["scorers", "Kendall tau-b", "Spearman", *(f"top-{k} in common" for k in ks), "candidates"]
    return "Agreement [95 % interval over candidates]\n\n" + table(head, rows)


def _robustness(run: RunComparison, names: dict[str, str]) -> str:
    asked = [view for view in run.views if view.robustness]
    rows = [
        [
            names[view.scorer],
            str(view.order[0]),
            f"{sum(row.went_to == 1 for row in view.robustness)} of {len(view.robustness)}",
            *map(_move, view.robustness),
        ]
        for view in asked
    ]
    head = ["scorer", "its pick", "stays", *(f"side ratio {row.ratio:g}" for row in asked[0].robustness)]
    return "The picks under HP&CC: all images mirrored and cropped\n\n" + table(head, rows)


def _move(row: Robustness) -> str:
    if row.went_to == 1:
        return "stays"
    return f"falls to {ordinal(row.went_to)}; {row.pick} leads, {ordinal(row.came_from)} before"


def _of_all(comparison: Comparison, names: dict[str, str]) -> Iterator[str]:
    if len(comparison.runs) < 2:
        return
    prompts = "1 prompt" if comparison.prompts == 1 else f"{comparison.prompts} prompts"
    yield f"## {len(comparison.runs)} runs of {prompts}\n"
    yield from _means(comparison, names)
    if comparison.robustness:
        head = ["scorer", "side ratio", "the pick stays, %", "its rank now"]
        rows = [
            [names[row.scorer], f"{row.ratio:g}", percent(row.stays), _interval(row.went_to, 1)]
            for row in comparison.robustness
        ]
        yield "The picks under HP&CC\n\n" + table(head, rows)


def markdown_of_batch(comparison: Comparison) -> str:
    """The averages of a comparison without its single prompts, for people."""
    prompts = "1 prompt" if comparison.prompts == 1 else f"{comparison.prompts:,} prompts"
    return "\n".join([f"## A batch of {prompts}\n", *_means(comparison, short_names(comparison.scorers))])


def _means(comparison: Comparison, names: dict[str, str]) -> Iterator[str]:
    if comparison.pairs:
        yield _mean_agreements(comparison, names)
        yield _mean_standings(comparison, names)


def _mean_agreements(comparison: Comparison, names: dict[str, str]) -> str:
    ks = list(comparison.pairs[0].overlap)
    rows = [
        [
            " and ".join(names[scorer] for scorer in pair.scorers),
            *map(_interval, (pair.kendall, pair.spearman)),
            *(percent(pair.overlap[k]) for k in ks),
        ]
        for pair in comparison.pairs
    ]
    head = ["scorers", "Kendall tau-b", "Spearman", *(f"top-{k} in common, %" for k in ks)]
    return "Means within prompts, then over prompts [95 % interval over prompts]\n\n" + table(head, rows)


def _mean_standings(comparison: Comparison, names: dict[str, str]) -> str:
    rows = []
    for pair in comparison.pairs:
        for side, (of, to) in enumerate((pair.scorers, pair.scorers[::-1])):
            rows.append([names[of], names[to], _interval(pair.rank_by[side], 1), percent(pair.normalized_gain[side])])
    return "The picks by the other scorer\n\n" + table(["pick of", "by", "rank", "gain, %"], rows)


def _interval(estimate: Estimate, digits: int = 2) -> str:
    """For example "0.31 [0.18, 0.43]"; empty where the figure is not defined."""
    if math.isnan(estimate.value):
        return ""
    bounds = "" if math.isnan(estimate.low) else f" [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
    return f"{estimate.value:.{digits}f}{bounds}"


def plot(comparison: Comparison) -> bytes:
    """How far any two scorers agree, and the best of n by each, as SVG; of one scorer the latter alone.

    Right, a line a run and scorer: its expected score of the first scorer's pick of n, as a share of the way from its
    mean candidate to its best; where a line falls, choosing from more candidates picks worse ones.
    A run whose candidates are no chance sample has no line.

    Raises:
        UsageError: if matplotlib is not installed.
    """
    names = short_names(comparison.scorers)
    pairs = comparison.pairs or comparison.runs[0].pairs
    figure = new_figure()
    figure.set_size_inches(11 if pairs else 5.5, 5)
    *left, right = figure.subplots(1, 2 if pairs else 1, squeeze=False)[0]
    if left:
        _draw_agreements(left[0], pairs, names, "prompts" if comparison.pairs else "candidates")
    _draw_best_of_n(right, comparison, names)
    return to_svg(figure)


def _draw_agreements(
    axes: Axes, pairs: Sequence[PairAgreement | MeanAgreement], names: dict[str, str], over: str
) -> None:
    for place, pair in enumerate(pairs):
        tau = pair.kendall
        axes.plot([tau.low, tau.high], [place, place], color="0.6")
        axes.plot([tau.value], [place], marker="o", color="black")
    labels = ["\n".join(plain(names[scorer]) for scorer in pair.scorers) for pair in pairs]
    axes.set_yticks(range(len(pairs)), labels, parse_math=False)
    axes.set(xlabel=f"Kendall tau-b, 95 % interval over {over}", xlim=(-1.05, 1.05), ylim=(len(pairs) - 0.5, -0.5))
    axes.axvline(0, color="0.8", zorder=0)


def _draw_best_of_n(axes: Axes, comparison: Comparison, names: dict[str, str]) -> None:
    colors = {name: f"C{place % 10}" for place, name in enumerate(comparison.scorers)}
    labeled: list[str] = []
    for run in comparison.runs:
        for scorer, curve in _shares(run):
            new = scorer not in labeled
            if new:
                labeled.append(scorer)
            axes.plot(
                range(1, len(curve) + 1), curve, color=colors[scorer], label=str(len(labeled)) if new else None,
                alpha=1 if len(comparison.runs) == 1 else 0.4,
            )  # fmt: skip
    axes.axhline(0, color="0.8", zorder=0)
    pickers = {run.views[0].scorer for run in comparison.runs}
    whose = f"{names[pickers.pop()]}'s pick" if len(pickers) == 1 else "the pick of each run's first scorer"
    axes.set(xscale="log", xlabel="n candidates")
    axes.set_ylabel(plain(f"score of {whose}: from mean (0) to best (1)"), parse_math=False)
    if labeled:
        add_legend(axes, [names[scorer] for scorer in labeled], "by")


def _shares(run: RunComparison) -> Iterator[tuple[str, list[float]]]:
    """By scorer, its expected score of the first scorer's pick of n: 0 its mean candidate, 1 its best."""
    first = run.views[0]
    own, gain = run.scores[first.scorer], first.normalized_gain or {}
    for scorer, curve in (first.best_of_n or {}).items():
        if not math.isnan(gain[scorer]):
            best = max(value for i, value in run.scores[scorer].items() if value is not None and own[i] is not None)
            yield scorer, [(value - curve[0]) / (best - curve[0]) for value in curve]
