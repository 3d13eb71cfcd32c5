"""Evaluations as tables and as a plot, for people. Knows no scorer and no group."""

from __future__ import annotations

from collections.abc import Sequence

from sp_rerank.report.tables import add_legend, new_figure, percent, table, to_svg
from sp_rerank.train.accuracy import CLEAR
from sp_rerank.train.evaluate import Evaluation


def markdown(evaluations: Sequence[Evaluation]) -> str:
    """Tables for people: a row a scorer and data sets side by side, then margins, ties and calibration."""
    text = accuracy_table(evaluations)
    ranked = [evaluation for evaluation in evaluations if evaluation.margins]
    if ranked:
        head = ["scorer", "data", "at most 1 rank apart", f"at least {CLEAR}", "by ranks apart: accuracy (pairs)"]
        text += "\nMicro accuracy by how much better the better image is, %\n\n" + table(
            head,
            [
                [
                    evaluation.scorer,
                    evaluation.data,
                    percent(evaluation.margins.similar),
                    percent(evaluation.margins.clear),
                    ", ".join(f"{m.ranks_apart}: {100 * m.accuracy:.1f} ({m.pairs})" for m in evaluation.margins.table),
                ]
                for evaluation in ranked
                if evaluation.margins
            ],
        )
    head = ["scorer", "data", "prompts", "images", "unreadable", "not finite", "strict pairs", "ties"]
    head += ["with predicted ties", "threshold", "temperature", "calibration error"]
    return text + "\nCounts, ties and calibration\n\n" + table(head, map(_counts, evaluations))


def accuracy_table(evaluations: Sequence[Evaluation]) -> str:
    """A row a scorer and one for how far people agree, two columns a data set: micro and macro."""
    names = list(dict.fromkeys(evaluation.data for evaluation in evaluations))
    cells = {(evaluation.scorer, evaluation.data): evaluation for evaluation in evaluations}
    scorers = list(dict.fromkeys(evaluation.scorer for evaluation in evaluations))
    head = ["scorer", *(f"{name} {kind}" for name in names for kind in ("micro", "macro"))]
    rows = [
        [scorer, *(percent(getattr(cells[scorer, name], kind)) for name in names for kind in ("micro", "macro"))]
        for scorer in scorers
    ]
    for kind in ("single_single", "single_averaged"):
        human = [evaluation.human for evaluation in (cells[scorers[0], name] for name in names)]
        if any(human):
            row = [cell for agreed in human for cell in ([percent(getattr(agreed, kind)), ""] if agreed else ["", ""])]
            rows.append([f"human: {kind.replace('_', ' against ')}", *row])
    return "Accuracy, % [95 % interval over prompts]\n\n" + table(head, rows)


def _counts(evaluation: Evaluation) -> list[str]:
    rule, calibration = evaluation.tie_rule, evaluation.calibration
    counts = [evaluation.groups, evaluation.images, len(evaluation.skipped), evaluation.nonfinite]
    counts += [evaluation.micro.n, evaluation.ties]
    ties = [percent(rule.accuracy), f"{rule.threshold:.4g}"] if rule else ["", ""]
    last = [f"{calibration.temperature:.4g}", f"{calibration.error:.3f}"]
    return [evaluation.scorer, evaluation.data, *map(str, counts), *ties, *last]


def reliability_plot(evaluations: Sequence[Evaluation]) -> bytes:
    """What share came out as predicted, by predicted probability, as SVG; a dot's area is its share of the pairs."""
    figure = new_figure()
    axes = figure.add_subplot(xlabel="predicted: P(higher score is preferred)", ylabel="observed")
    axes.plot([0.5, 1], [0.5, 1], color="0.7", linestyle="--")
    names = []
    for number, evaluation in enumerate(evaluations):
        calibration = evaluation.calibration
        x, y, n = ([getattr(b, name) for b in calibration.bins] for name in ("predicted", "observed", "n"))
        line = axes.plot(x, y, label=str(number))[0]
        names.append(f"{evaluation.scorer.split('@')[0]}, {evaluation.data}: {calibration.error:.3f}")
        axes.scatter(x, y, [300 * count / sum(n) for count in n], color=line.get_color())
    add_legend(axes, names, "calibration error")
    return to_svg(figure)
