"""The figures of the experiment on the method: what the scores of its runs say, pooled over seeds. Knows no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sp_rerank.report.tables import percent, table
from sp_rerank.stats import agreement
from sp_rerank.stats.agreement import Estimate
from sp_rerank.train.accuracy import compare_pairs
from sp_rerank.train.preferences import PreferenceGroup
from sp_rerank.train.robustness import mean_shift, order_flips
from sp_rerank.train.scores import ScoredGroup


@dataclass(frozen=True, slots=True)
class Scores:
    """What one scorer gives.

    Attributes:
        test: (views, groups, images) of the first domain's test prompts; the images as they are, then HP&CC.
        other: The same of the second domain.
        candidates: (prompts, candidates) of the best-of-a-hundred prompts.
    """

    test: np.ndarray
    other: np.ndarray
    candidates: np.ndarray


@dataclass(frozen=True, slots=True)
class Figures:
    """What a method is worth, its seeds pooled; intervals are over prompts.

    Attributes:
        test: accuracy against the judge's order on the first domain's test prompts.
        other: The same on the second domain.
        ahead: accuracy on the second domain, less that of the baseline, prompt by prompt.
        seeds: accuracy on the second domain of each seed.
        changes: accuracy at each ratio of HP&CC less that on the images as they are, mean over the domains.
        unsteady: the mean of their sizes.
        flips: share of pairs whose order HP&CC turns, mean over ratios and domains.
        shift: mean |S - S'| over the standard deviation of S, mean over ratios and domains.
        gain: of the judge's best of a hundred over their mean, what the pick has.
        picked: the judge's score of the pick less that of clip-mini's pick, prompt by prompt.
    """

    test: Estimate
    other: Estimate
    ahead: Estimate
    seeds: tuple[float, ...]
    changes: tuple[float, ...]
    unsteady: float
    flips: float
    shift: float
    gain: Estimate
    picked: Estimate


def with_scores(groups: Sequence[PreferenceGroup], scores: np.ndarray) -> list[ScoredGroup]:
    """The groups with what is kept of them, (views, groups, images)."""
    return [
        ScoredGroup(group.prompt, group.pairs, group.ranks, group.annotations, scores[:, i])
        for i, group in enumerate(groups)
    ]


def right_by_prompt(scored: Sequence[ScoredGroup]) -> np.ndarray:
    """(views, groups) the share of a prompt's strict pairs in the right order."""
    views = range(len(scored[0].scores))
    compared = [[compare_pairs(group, view) for group in scored] for view in views]
    return np.array([[pairs.right.sum() / pairs.strict.sum() for pairs in row] for row in compared])


def unsteadiness(scored: Sequence[ScoredGroup]) -> tuple[float, float]:
    """The share of pairs that a view turns, and the mean |S - S'| over the standard deviation of S; of all views."""
    views, pairs = range(1, len(scored[0].scores)), sum(len(group.pairs) for group in scored)
    flips = [sum(order_flips(group, view) for group in scored) / pairs for view in views]
    return float(np.mean(flips)), float(np.mean([mean_shift(scored, view) for view in views]))


def figures(
    runs: Sequence[Scores], base: Scores, baseline: Sequence[Scores], domains: dict[str, Any], judged: np.ndarray
) -> Figures:
    """The figures of a method.

    Args:
        runs: Scores of each seed.
        base: Scores of clip-mini.
        baseline: Scores of each seed of the baseline.
        domains: The groups of "test" and "other".
        judged: (prompts, candidates) the judge's scores.
    """
    right = {name: _mean_right(runs, name, groups) for name, groups in domains.items()}
    against = _mean_right(baseline, "other", domains["other"])
    ones = np.ones(len(against[0]))
    changes = np.mean([r[1:].mean(axis=1) - r[0].mean() for r in right.values()], axis=0)
    every = [with_scores(groups, getattr(run, name)) for run in runs for name, groups in domains.items()]
    steady = np.array([unsteadiness(scored) for scored in every]).mean(axis=0)
    picked = np.mean([_picked(run, judged) for run in runs], axis=0)
    mean, best = judged.mean(axis=1), judged.max(axis=1)
    return Figures(
        test=agreement.ratio(right["test"][0], np.ones(len(right["test"][0]))),
        other=agreement.ratio(right["other"][0], ones),
        ahead=agreement.ratio(right["other"][0] - against[0], ones),
        seeds=tuple(float(right_by_prompt(with_scores(domains["other"], run.other[:1])).mean()) for run in runs),
        changes=tuple(float(change) for change in changes),
        unsteady=float(np.abs(changes).mean()),
        flips=float(steady[0]),
        shift=float(steady[1]),
        gain=agreement.ratio(picked - mean, best - mean),
        picked=agreement.ratio(picked - _picked(base, judged), np.ones(len(judged))),
    )


def _mean_right(runs: Sequence[Scores], name: str, groups: Sequence[PreferenceGroup]) -> np.ndarray:
    return np.mean([right_by_prompt(with_scores(groups, getattr(run, name))) for run in runs], axis=0)


def _picked(run: Scores, judged: np.ndarray) -> np.ndarray:
    """(prompts,) the judge's score of the candidate that a scorer ranks first."""
    return judged[np.arange(len(judged)), run.candidates.argmax(axis=1)]


def markdown(results: dict[str, Figures]) -> str:
    """The figures as a table, a row a method."""
    head = ["method", "accuracy, in domain", "across domains", "ahead of cross-entropy", "by seed",
            "HP&CC: mean size of the change", "order flips", "mean shift / std", "best of 100: gain",
            "ahead of clip-mini's pick"]  # fmt: skip
    rows = []
    for name, method in results.items():
        rows.append([
            name, percent(method.test), percent(method.other), percent(method.ahead),
            ", ".join(f"{100 * seed:.1f}" for seed in method.seeds), f"{100 * method.unsteady:.2f}",
            f"{100 * method.flips:.1f}", f"{method.shift:.3f}", percent(method.gain), _plain(method.picked),
        ])  # fmt: skip
    return table(head, rows)


def _plain(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"
