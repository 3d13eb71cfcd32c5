"""What a comparison of scorers says, in words, tables and a plot. Knows nothing of how it was made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sp_rerank.compare.compare import Comparison, MeanAgreement, Opinion, PairAgreement, RunComparison, Steadiness
from sp_rerank.report.tables import new_figure, percent, table, to_svg
from sp_rerank.stats.agreement import Estimate
from sp_rerank.stats.best_of_n import ENOUGH

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNKNOWN_TIES = "no calibration: ties unknown"
SHOWN = 6  # candidates of a tie group that a sentence names


def markdown(comparison: Comparison) -> str:
    """Sentences and tables for people: run by run, then what holds on the average of several."""
    names = short_names(comparison.scorers)
    parts = [part for run in comparison.runs for part in _of_run(run, names)]
    return "\n".join([*parts, *_of_all(comparison, names)])


def short_names(scorers: Sequence[str]) -> dict[str, str]:
    """Each full name without its hash, where that tells the scorers apart."""
    short = {name: name.partition("@")[0] for name in scorers}
    alone = [name for name in scorers if list(short.values()).count(short[name]) == 1]
    return {name: short[name] if name in alone else name for name in scorers}


def _of_run(run: RunComparison, names: dict[str, str]) -> Iterator[str]:
    yield f"## {run.run}\n\n{run.prompt!r}: {len(run.seeds)} of {run.n} candidates compared\n"
    yield "".join(f"- {sentence}\n" for sentence in _sentences(run, names))
    yield _picks(run, names)
    if run.pairs:
        yield _agreements(run, names)
    if any(opinion.steadiness for opinion in run.opinions):
        yield _steadiness(run, names)
    if run.problems:
        yield "Left out\n\n" + "".join(f"- {problem}\n" for problem in run.problems)


def _sentences(run: RunComparison, names: dict[str, str]) -> Iterator[str]:
    for opinion in run.opinions:
        best = opinion.order[0]
        chosen = f"{names[opinion.scorer]} would have chosen candidate {best} (seed {run.seeds[best]})"
        yield f"{chosen}; {_ties(run, opinion)}"
    if len(run.opinions) > 1 and run.ensemble:
        best = run.ensemble[0]
        stands = ", ".join(
            f"{names[opinion.scorer]} {_ordinal(opinion.order.index(best) + 1)}" for opinion in run.opinions
        )
        yield f"by the mean of all ranks it is candidate {best} (seed {run.seeds[best]}): {stands}"
    if not run.chance_sample:
        yield (
            "these are the finalists of a search, no chance sample: neither what the best of n is worth nor the way "
            "from the mean candidate to the best can be told"
        )


def _ties(run: RunComparison, opinion: Opinion) -> str:
    tied, calibration = opinion.tied_first, opinion.calibration
    if tied is None or calibration is None:
        return UNKNOWN_TIES
    if len(opinion.order) < 2:
        return "there is no other"
    first, second = (run.scores[opinion.scorer][index] or 0.0 for index in opinion.order[:2])
    people = "simulated people" if calibration.simulated else "people"
    sure = f"{calibration.preferred(first - second):.0%} of {people} would prefer it to the second"
    if len(tied) == 1:
        return f"it is told apart from all others: {sure}"
    if len(tied) == len(opinion.order):
        return f"none of the {len(tied)} is told apart from it: {sure}"
    shown = ", ".join(map(str, tied[:SHOWN])) + (", ..." if len(tied) > SHOWN else "")
    return f"the first {len(tied)} are not told apart ({shown}): {sure}"


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _picks(run: RunComparison, names: dict[str, str]) -> str:
    head = ["scorer", "its pick", "not told apart", f"{ENOUGH:.0%} of the gain at n ="]
    head += [f"to {names[one.scorer]}" for one in run.opinions]
    rows = []
    for opinion in run.opinions:
        tied = "?" if opinion.tied_first is None else str(len(opinion.tied_first))
        enough = "?" if opinion.enough is None else str(opinion.enough)
        cells = [names[opinion.scorer], str(opinion.order[0]), tied, enough]
        rows.append([*cells, *(_standing(opinion, other.scorer) for other in run.opinions)])
    title = "The picks, and what each is to the others: its rank"
    if run.chance_sample:
        title += ", and its way from the mean candidate to the best"
    return f"{title}\n\n{table(head, rows)}"


def _standing(opinion: Opinion, other: str) -> str:
    stands, gain = opinion.stands[other], opinion.gain[other] if opinion.gain else math.nan
    return "" if stands is None else _ordinal(stands) + ("" if math.isnan(gain) else f", {gain:.0%}")


def _agreements(run: RunComparison, names: dict[str, str]) -> str:
    ks = list(dict.fromkeys(k for pair in run.pairs for k in pair.overlap))
    rows = [
        [
            " and ".join(names[one] for one in pair.scorers),
            *map(_interval, (pair.kendall, pair.spearman)),
            *(f"{pair.overlap[k]:.0%}" if k in pair.overlap else "" for k in ks),
            str(pair.kendall.n),
        ]
        for pair in run.pairs
    ]
    head = ["scorers", "Kendall tau-b", "Spearman", *(f"top-{k} in common" for k in ks), "candidates"]
    return "Agreement [95 % interval over candidates]\n\n" + table(head, rows)


def _steadiness(run: RunComparison, names: dict[str, str]) -> str:
    asked = [opinion for opinion in run.opinions if opinion.steadiness]
    rows = [
        [
            names[one.scorer],
            str(one.order[0]),
            f"{sum(row.went_to == 1 for row in one.steadiness)} of {len(one.steadiness)}",
            *map(_move, one.steadiness),
        ]
        for one in asked
    ]
    head = ["scorer", "its pick", "stays", *(f"side ratio {row.ratio:g}" for row in asked[0].steadiness)]
    return "The picks under HP&CC: all images mirrored and cropped\n\n" + table(head, rows)


def _move(row: Steadiness) -> str:
    if row.went_to == 1:
        return "stays"
    return f"falls to {_ordinal(row.went_to)}; {row.pick} leads, {_ordinal(row.came_from)} before"


def _of_all(comparison: Comparison, names: dict[str, str]) -> Iterator[str]:
    if len(comparison.runs) < 2:
        return
    prompts = "1 prompt" if comparison.prompts == 1 else f"{comparison.prompts} prompts"
    yield f"## {len(comparison.runs)} runs of {prompts}\n"
    if comparison.pairs:
        yield _mean_agreements(comparison, names)
        yield _mean_standings(comparison, names)
    if comparison.steadiness:
        head = ["scorer", "side ratio", "the pick stays, %", "its rank now"]
        rows = [
            [names[row.scorer], f"{row.ratio:g}", percent(row.stays), _interval(row.went_to, 1)]
            for row in comparison.steadiness
        ]
        yield "The picks under HP&CC\n\n" + table(head, rows)


def _mean_agreements(comparison: Comparison, names: dict[str, str]) -> str:
    ks = list(comparison.pairs[0].overlap)
    rows = [
        [
            " and ".join(names[one] for one in pair.scorers),
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
            rows.append([names[of], names[to], _interval(pair.stands[side], 1), percent(pair.gain[side])])
    return "The picks, and what they are to the others\n\n" + table(["pick of", "to", "rank", "gain, %"], rows)


def _interval(estimate: Estimate, digits: int = 2) -> str:
    """For example "0.31 [0.18, 0.43]"; empty where the figure is not defined."""
    if math.isnan(estimate.value):
        return ""
    bounds = "" if math.isnan(estimate.low) else f" [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
    return f"{estimate.value:.{digits}f}{bounds}"


def plot(comparison: Comparison) -> bytes:
    """How far any two scorers agree, and what the pick of n is worth to each, as SVG; of one scorer the latter alone.

    Right, a line a run and scorer: what the pick of the run's first scorer out of n is worth, as a share of the way
    from that scorer's mean candidate to its best; where a line falls, choosing from more candidates picks worse ones.
    A run of which that cannot be told has no line.

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
    _draw_worth(right, comparison, names)
    return to_svg(figure)


def _draw_agreements(
    axes: Axes, pairs: Sequence[PairAgreement | MeanAgreement], names: dict[str, str], over: str
) -> None:
    for place, pair in enumerate(pairs):
        tau = pair.kendall
        axes.plot([tau.low, tau.high], [place, place], color="0.6")
        axes.plot([tau.value], [place], marker="o", color="black")
    axes.set_yticks(range(len(pairs)), ["\n".join(names[one] for one in pair.scorers) for pair in pairs])
    axes.set(xlabel=f"Kendall tau-b, 95 % interval over {over}", xlim=(-1.05, 1.05), ylim=(len(pairs) - 0.5, -0.5))
    axes.axvline(0, color="0.8", zorder=0)


def _draw_worth(axes: Axes, comparison: Comparison, names: dict[str, str]) -> None:
    colours = {name: f"C{place % 10}" for place, name in enumerate(comparison.scorers)}
    labelled: set[str] = set()
    for run in comparison.runs:
        for judge, curve in _shares(run):
            label = None if judge in labelled else names[judge]
            labelled.add(judge)
            axes.plot(
                range(1, len(curve) + 1), curve, color=colours[judge], label=label,
                alpha=1 if len(comparison.runs) == 1 else 0.4,
            )  # fmt: skip
    axes.axhline(0, color="0.8", zorder=0)
    pickers = {run.opinions[0].scorer for run in comparison.runs}
    whose = f"{names[pickers.pop()]}'s pick" if len(pickers) == 1 else "the pick of each run's first scorer"
    axes.set(xscale="log", xlabel="n candidates", ylabel=f"worth of {whose}: from mean to best")
    if labelled:
        axes.legend(title="to")


def _shares(run: RunComparison) -> Iterator[tuple[str, list[float]]]:
    """By scorer, what the first one's pick of n is worth to it: 0 its mean candidate, 1 its best."""
    first = run.opinions[0]
    own, gain = run.scores[first.scorer], first.gain or {}
    for judge, curve in (first.best_of_n or {}).items():
        if not math.isnan(gain[judge]):
            worth = run.scores[judge]
            best = max(value for i, value in worth.items() if value is not None and own[i] is not None)
            yield judge, [(value - curve[0]) / (best - curve[0]) for value in curve]
