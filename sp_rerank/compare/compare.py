"""Do the scorers agree? The candidates of a run, or of several, by more than one scorer.

Scores of one prompt only are ever compared, and by ranks or by shares of a scorer's own gain, so that scales do not
matter. Knows run folders and scorers; the statistics are in `sp_rerank.stats.agreement`, what is shown in
`sp_rerank.compare.tables`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING

from sp_rerank.compare.collect import ScoredRun, named, score_run
from sp_rerank.compare.comparison import (
    TOP,
    Comparison,
    MeanAgreement,
    MeanRobustness,
    PairAgreement,
    Robustness,
    RunComparison,
    ScorerView,
)
from sp_rerank.errors import NothingUsableError, SpRerankError, UsageError
from sp_rerank.report.orderings import is_chance_sample
from sp_rerank.run.folder import RunDir
from sp_rerank.scorers.calibration import calibration_of
from sp_rerank.scorers.ensemble import MeanRank
from sp_rerank.scorers.scoring import name_of
from sp_rerank.stats import agreement, best_of_n, ranking
from sp_rerank.stats.agreement import Estimate
from sp_rerank.storage.perturbation import RATIOS

if TYPE_CHECKING:
    from sp_rerank.scorers.calibration import ScorerCalibration
    from sp_rerank.types import PairScorer, Scorer


def compare(
    runs: Sequence[RunDir],
    scorers: Sequence[Scorer | PairScorer] = (),
    *,
    steady: bool = False,
    keep: bool = True,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    failed: Callable[[SpRerankError], None] | None = None,
) -> Comparison:
    """Compare runs by scorers: those whose scores a run holds, and these.

    An image file is read once and decoded at most once, for all scorers. One that is missing or changed, or that a
    scorer fails on, is named among the problems and left out; the rest is compared.

    Args:
        runs: different folders, of any prompts.
        scorers: scored with where a run does not hold their scores.
        steady: rank the images again under HP&CC by each of `scorers`.
        keep: write the new scores into the run folders; where that fails it is one of the problems.
        seed: Seed of the bootstrap.
        progress: Called with how many candidates are done.
        failed: Called with the reason for every run that cannot be compared, and the others are compared; where
            there is no other the result has no runs. None raises the first such error.

    Raises:
        UsageError: if a run or a scorer is given twice, a run holds no scores and no scorer is given, `steady` has no
            scorer to ask, the calibration of a scorer is damaged, or the only scores are those of a scorer that fails
            on every image.
        NothingUsableError: if a run has no candidate that can be compared, or no scorer has a score for any.
    """
    _check(runs, scorers, steady)
    calibrations = {scorer.name: calibration_of(scorer) for scorer in scorers}  # a damaged one ends it before the work
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress:
            progress(done)

    compared = []
    for run in runs:
        try:
            scored = score_run(run, scorers, ratios=RATIOS if steady else (), progress=count)
            if keep:
                scored.keep()
            compared.append(_compare(scored, calibrations, seed))
        except SpRerankError as error:
            if not failed:
                raise
            failed(error)
    names = tuple(dict.fromkeys(view.scorer for run in compared for view in run.views))
    several = len(compared) > 1
    return Comparison(
        scorers=names,
        prompts=len({run.prompt for run in compared}),
        runs=tuple(compared),
        pairs=tuple(_mean_pairs(names, compared, seed)) if several else (),
        robustness=tuple(_mean_robustness(compared, seed)) if several else (),
    )


def _check(runs: Sequence[RunDir], scorers: Sequence[Scorer | PairScorer], steady: bool) -> None:
    for scorer in scorers:
        if isinstance(scorer, MeanRank):
            raise UsageError(f"{scorer.name} is a mean of ranks; name its scorers one by one, their mean rank is told")
    for what, given in (("run", [str(run.path.resolve()) for run in runs]), ("scorer", [*map(name_of, scorers)])):
        twice = [name for name, count in Counter(given).items() if count > 1]
        if twice:
            raise UsageError(f"the {what} {twice[0]} was given twice; expected each once")
    if not runs:
        raise UsageError("expected one run folder or more, got none")
    if steady and not scorers:
        raise UsageError("mirrored and cropped images take a scorer to rank them again; name one")


# One run


def _compare(scored: ScoredRun, calibrations: Mapping[str, ScorerCalibration | None], seed: int) -> RunComparison:
    run, indices = scored.run, scored.indices
    columns = {name: scored.column(name) for name in scored.scores}
    for name, column in columns.items():
        lost = [index for index, score in scored.scores[name].items() if not math.isfinite(score)]
        if lost:
            scored.problems.append(f"scorer {name}: the score of {named(lost)} is not finite")
        if not any(map(math.isfinite, column)):
            scored.problems.append(f"scorer {name} has no score for any candidate, and is left out")
    columns = {name: column for name, column in columns.items() if any(map(math.isfinite, column))}
    if not columns:
        if scored.failed:
            raise UsageError(f"{run.path}: no candidate can be compared: {next(iter(scored.failed.values()))}")
        raise NothingUsableError(
            f"{run.path}: no candidate can be compared: {'; '.join(scored.problems[:3]) or 'it holds none'}"
        )
    known = {name: calibrations[name] if name in calibrations else calibration_of(name) for name in columns}
    single = [column for name, column in columns.items() if not _is_mean_of(name, columns)]
    means = ranking.mean_ranks(single)
    places = ranking.top([-mean for mean in means], len(means))
    return RunComparison(
        run=str(run.path),
        prompt=run.config.prompt,
        n=run.n,
        chance_sample=is_chance_sample(run),
        seeds={index: run.rows[index].seed for index in indices},
        scores={
            name: {i: ranking.finite(score) for i, score in zip(indices, column, strict=True)}
            for name, column in columns.items()
        },
        views=tuple(_view(name, columns, scored, known[name]) for name in columns),
        pairs=tuple(_pair(a, b, columns, seed) for a, b in combinations(columns, 2)),
        ensemble=tuple(indices[place] for place in places),
        problems=tuple(scored.problems),
        failed=scored.failed,
    )


def _is_mean_of(name: str, others: Mapping[str, object]) -> bool:
    """Whether a scorer is the mean of the ranks of others, which are there by themselves."""
    parts = name.split("+")
    return len(parts) > 1 and all(part in others for part in parts)


def _view(
    name: str, columns: Mapping[str, list[float]], scored: ScoredRun, calibration: ScorerCalibration | None
) -> ScorerView:
    column = columns[name]
    places = ranking.top(column, len(column))
    groups = ranking.tie_groups([column[place] for place in places], calibration.margin) if calibration else None
    curves = None
    if is_chance_sample(scored.run):
        curves = {other: tuple(best_of_n.expected_best(column, columns[other]).tolist()) for other in columns}
    order = [scored.indices[place] for place in places]
    return ScorerView(
        scorer=name,
        order=tuple(order),
        calibration=calibration,
        tie_groups=None if groups is None else tuple(groups),
        rank_by={other: _rank(columns[other], places[0]) for other in columns},
        best_of_n=curves,
        normalized_gain={other: _gain(column, columns[other], curves[other]) for other in columns} if curves else None,
        n_for_gain=best_of_n.n_for_gain(curves[name]) if curves else None,
        robustness=tuple(
            _robustness(order, ratio, scores) for (of, ratio), scores in scored.perturbed.items() if of == name
        ),
    )


def _rank(scores: Sequence[float], place: int) -> int | None:
    return ranking.order(scores).index(place) + 1 if math.isfinite(scores[place]) else None


def _gain(scores: Sequence[float], values: Sequence[float], curve: Sequence[float]) -> float:
    """How far the pick of all goes from the mean value to the best; see `ScorerView.normalized_gain`."""
    both = [v for s, v in zip(scores, values, strict=True) if math.isfinite(s) and math.isfinite(v)]
    if not both or max(both) == min(both):
        return math.nan
    return (curve[-1] - curve[0]) / (max(both) - curve[0])


def _robustness(order: Sequence[int], ratio: float, scores: Mapping[int, float]) -> Robustness:
    """The rank of the first of `order`, and which candidate comes first, by the scores of the perturbed images."""
    again = [sorted(order)[place] for place in ranking.order([scores.get(i, math.nan) for i in sorted(order)])]
    return Robustness(ratio, again[0], order.index(again[0]) + 1, again.index(order[0]) + 1)


def _pair(first: str, second: str, columns: Mapping[str, list[float]], seed: int) -> PairAgreement:
    a, b = columns[first], columns[second]
    return PairAgreement(
        scorers=(first, second),
        kendall=agreement.kendall_interval(a, b, seed=seed),
        spearman=agreement.spearman(a, b, seed=seed),
        overlap={k: agreement.top_k_overlap(a, b, k) for k in TOP if k <= len(a)},
    )


# Several runs


def _mean_pairs(names: Sequence[str], runs: Sequence[RunComparison], seed: int) -> Iterator[MeanAgreement]:
    for first, second in combinations(names, 2):
        both = [(run, pair) for run in runs for pair in run.pairs if set(pair.scorers) == {first, second}]
        if both:
            yield _mean_pair((first, second), both, seed)


def _mean_pair(
    scorers: tuple[str, str], both: Sequence[tuple[RunComparison, PairAgreement]], seed: int
) -> MeanAgreement:
    def mean(value: Callable[[RunComparison, PairAgreement], float | None]) -> Estimate:
        return within_prompts([(run.prompt, value(run, pair)) for run, pair in both], seed)

    def each_to_the_other(value: Callable[[ScorerView, str], float | None]) -> tuple[Estimate, Estimate]:
        first, second = scorers
        return (
            mean(lambda run, _: value(run.view(first), second)),
            mean(lambda run, _: value(run.view(second), first)),
        )

    return MeanAgreement(
        scorers=scorers,
        kendall=mean(lambda _, pair: pair.kendall.value),
        spearman=mean(lambda _, pair: pair.spearman.value),
        overlap={k: mean(lambda _, pair, k=k: pair.overlap.get(k)) for k in TOP},
        rank_by=each_to_the_other(lambda view, other: view.rank_by[other]),
        normalized_gain=each_to_the_other(
            lambda view, other: view.normalized_gain[other] if view.normalized_gain else None
        ),
    )


def _mean_robustness(runs: Sequence[RunComparison], seed: int) -> Iterator[MeanRobustness]:
    found: dict[tuple[str, float], list[tuple[str, int]]] = {}
    for run in runs:
        for view in run.views:
            for row in view.robustness:
                found.setdefault((view.scorer, row.ratio), []).append((run.prompt, row.went_to))
    for (scorer, ratio), ranks in found.items():
        stays = within_prompts([(prompt, float(rank == 1)) for prompt, rank in ranks], seed)
        yield MeanRobustness(scorer, ratio, stays, within_prompts(ranks, seed))


def within_prompts(values: Sequence[tuple[str, float | None]], seed: int) -> Estimate:
    """The mean over prompts of the mean over a prompt's values, where these are defined."""
    by_prompt: dict[str, list[float]] = {}
    for prompt, value in values:
        if value is not None and not math.isnan(value):
            by_prompt.setdefault(prompt, []).append(value)
    return agreement.ratio([fmean(several) for several in by_prompt.values()], [1] * len(by_prompt), seed=seed)
