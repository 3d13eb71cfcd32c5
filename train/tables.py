"""Evaluations as tables and as a plot, for people. Knows no scorer and no group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sp_rerank.report.tables import new_figure, percent, table, to_svg

if TYPE_CHECKING:
    pass

from sp_rerank.train.accuracy import CLEAR
from sp_rerank.train.evaluate import Evaluation


def markdown(evaluations: Sequence[Evaluation]) -> str:
    """Tables for people: a row a scorer and data sets side by side, then margins, ties and calibration."""
    names = list(dict.fromkeys(one.data for one in evaluations))
    cells = {(one.scorer, one.data): one for one in evaluations}
    scorers = list(dict.fromkeys(one.scorer for one in evaluations))
    head = ["scorer", *(f"{name} {kind}" for name in names for kind in ("micro", "macro"))]
    rows = [
        [scorer, *(percent(getattr(cells[scorer, name], kind)) for name in names for kind in ("micro", "macro"))]
        for scorer in scorers
    ]
    for kind in ("single_single", "single_averaged"):
        human = [one.human for one in (cells[scorers[0], name] for name in names)]
        if any(human):
            row = [cell for one in human for cell in ([percent(getattr(one, kind)), ""] if one else ["", ""])]
            rows.append([f"human: {kind.replace('_', ' against ')}", *row])
    text = "Accuracy, % [95 % interval over prompts]\n\n" + table(head, rows)
    ranked = [one for one in evaluations if one.margins]
    if ranked:
        head = ["scorer", "data", "at most 1 rank apart", f"at least {CLEAR}", "by ranks apart: accuracy (pairs)"]
        text += "\nMicro accuracy by how much better the better image is, %\n\n" + table(
            head,
            [
                [
                    one.scorer,
                    one.data,
                    percent(one.margins.similar),
                    percent(one.margins.clear),
                    ", ".join(f"{m.ranks_apart}: {100 * m.accuracy:.1f} ({m.pairs})" for m in one.margins.table),
                ]
                for one in ranked
                if one.margins
            ],
        )
    head = ["scorer", "data", "prompts", "images", "unreadable", "not finite", "strict pairs", "ties"]
    head += ["with predicted ties", "threshold", "temperature", "calibration error"]
    return text + "\nCounts, ties and calibration\n\n" + table(head, [_counts(one) for one in evaluations])


def _counts(one: Evaluation) -> list[str]:
    counts = [one.groups, one.images, len(one.skipped), one.nonfinite, one.micro.n, one.ties]
    ties = [percent(one.tie_rule.accuracy), f"{one.tie_rule.threshold:.4g}"] if one.tie_rule else ["", ""]
    last = [f"{one.calibration.temperature:.4g}", f"{one.calibration.error:.3f}"]
    return [one.scorer, one.data, *map(str, counts), *ties, *last]


def reliability_plot(evaluations: Sequence[Evaluation]) -> bytes:
    """What share came out as predicted, by predicted probability, as SVG; a dot's area is its share of the pairs."""
    figure = new_figure()
    axes = figure.add_subplot(xlabel="predicted: P(higher score is preferred)", ylabel="observed")
    axes.plot([0.5, 1], [0.5, 1], color="0.7", linestyle="--")
    for one in evaluations:
        x, y, n = ([getattr(b, name) for b in one.calibration.bins] for name in ("predicted", "observed", "n"))
        line = axes.plot(x, y, label=f"{one.scorer.split('@')[0]}, {one.data}: {one.calibration.error:.3f}")[0]
        axes.scatter(x, y, [300 * count / sum(n) for count in n], color=line.get_color())
    axes.legend(title="calibration error")
    return to_svg(figure)
