"""Do the scorers agree? The candidates of a run, or of several, in the eyes of more than one scorer.

Scores of one prompt only are ever compared, and by ranks or by shares of a scorer's own gain, so that scales do not
matter. Knows run folders and scorers; the statistics are in `sp_rerank.stats.agreement`, what is shown in
`sp_rerank.compare.tables`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING

from sp_rerank.compare.collect import ScoredRun, is_chance_sample, named, score_run
from sp_rerank.errors import NothingUsableError, SpRerankError, UsageError
from sp_rerank.run.folder import RunDir
from sp_rerank.scorers.calibration import ScorerCalibration, calibration_of
from sp_rerank.stats import agreement, best_of_n, ranking
from sp_rerank.stats.agreement import Estimate
from sp_rerank.storage.perturbation import RATIOS

if TYPE_CHECKING:
    from sp_rerank.types import Scorer

TOP = (1, 4, 10)
"""How many of the best two scorers are asked to have in common."""


@dataclass(frozen=True, slots=True)
class Steadiness:
    """What HP&CC does to a scorer's pick: all images mirrored and cropped alike, and ranked again.

    Attributes:
        ratio: of the sides after the crop; 1 is the mirror alone.
        pick: index of the candidate that is the best now.
        came_from: its rank before.
        went_to: the rank that the pick of the images as they are has now; 1 says that it stays.
    """

    ratio: float
    pick: int
    came_from: int
    went_to: int


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one scorer makes of a run.

    Attributes:
        scorer: full name.
        order: indices of the candidates that it has a finite score for, the best first.
        calibration: of the scorer; None where none is known, and then nobody can say which candidates tie.
        tie_groups: of the candidates in `order`; None without a calibration.
        stands: the rank of its favourite by every scorer's name, 1 by its own; None where that one has no score for it.
        best_of_n: by every scorer's name what this one's pick of n = 1, 2, ... candidates is worth to it, in its scale.
            None, like the next two, of a search's finalists; see `sp_rerank.compare.collect.is_chance_sample`.
        gain: by every scorer's name the way from its mean candidate to its best that this one's pick has gone: 1 by its
            own, 0 what chance would do, NaN where all are worth the same.
        enough: how many candidates reach `best_of_n.ENOUGH` of its own gain.
        steadiness: a row a ratio; empty where it was not asked for.
    """

    scorer: str
    order: tuple[int, ...]
    calibration: ScorerCalibration | None
    tie_groups: tuple[int, ...] | None
    stands: dict[str, int | None]
    best_of_n: dict[str, tuple[float, ...]] | None
    gain: dict[str, float] | None
    enough: int | None
    steadiness: tuple[Steadiness, ...]

    @property
    def tied_first(self) -> tuple[int, ...] | None:
        """The candidates that are not told apart from its favourite, itself among them; None where nobody can say."""
        if self.tie_groups is None:
            return None
        return tuple(index for index, group in zip(self.order, self.tie_groups, strict=True) if group == 1)


@dataclass(frozen=True, slots=True)
class PairAgreement:
    """How far two scorers agree about the candidates of one run.

    Attributes:
        scorers: their full names.
        kendall: tau-b, with its interval over candidates.
        spearman: likewise.
        overlap: by k, the share of the one's k best that are among the other's; those of TOP that the run has.
    """

    scorers: tuple[str, str]
    kendall: Estimate
    spearman: Estimate
    overlap: dict[int, float]


@dataclass(frozen=True, slots=True)
class RunComparison:
    """One run in the eyes of all scorers.

    Attributes:
        run: path of the folder.
        prompt: of the run.
        n: candidates that the run is to have.
        chance_sample: whether those that are compared are; False of a search's finalists.
        seeds: by the index of each candidate that is compared.
        scores: by scorer, then by index; None where there is no finite one.
        opinions: one a scorer.
        pairs: of any two scorers.
        ensemble: indices by the mean of their ranks, the best first; those that every scorer has a score for.
        problems: what was left out and why, a line each.
    """

    run: str
    prompt: str
    n: int
    chance_sample: bool
    seeds: dict[int, int]
    scores: dict[str, dict[int, float | None]]
    opinions: tuple[Opinion, ...]
    pairs: tuple[PairAgreement, ...]
    ensemble: tuple[int, ...]
    problems: tuple[str, ...]

    def opinion(self, scorer: str) -> Opinion:
        """That of one scorer, by its full name."""
        return next(opinion for opinion in self.opinions if opinion.scorer == scorer)


@dataclass(frozen=True, slots=True)
class MeanAgreement:
    """How far two scorers agree on several runs: the mean over a prompt's runs, then over prompts; never pooled.

    Attributes:
        scorers: their full names.
        kendall: with its interval over prompts, like all here; n is the prompts.
        spearman: likewise.
        overlap: by k.
        stands: the rank of the first one's favourite by the second, and the other way round.
        gain: of the first one's pick to the second, and the other way round; see `Opinion.gain`.
    """

    scorers: tuple[str, str]
    kendall: Estimate
    spearman: Estimate
    overlap: dict[int, Estimate]
    stands: tuple[Estimate, Estimate]
    gain: tuple[Estimate, Estimate]


@dataclass(frozen=True, slots=True)
class MeanSteadiness:
    """How often a scorer's pick stays under HP&CC, likewise over prompts.

    Attributes:
        scorer: full name.
        ratio: as in `Steadiness`.
        stays: share of the runs.
        went_to: mean rank of the pick afterwards.
    """

    scorer: str
    ratio: float
    stays: Estimate
    went_to: Estimate


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs one by one and, of two or more, what holds on the average.

    Attributes:
        scorers: full names, in the order in which they were found.
        prompts: different ones.
        runs: each by itself, as far as it can be compared.
        pairs: averages, of any two scorers that share a run; empty for one run.
        steadiness: averages; likewise.
    """

    scorers: tuple[str, ...]
    prompts: int
    runs: tuple[RunComparison, ...]
    pairs: tuple[MeanAgreement, ...]
    steadiness: tuple[MeanSteadiness, ...]


def compare(
    runs: Sequence[RunDir],
    scorers: Sequence[Scorer] = (),
    *,
    steady: bool = False,
    keep: bool = True,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    failed: Callable[[SpRerankError], None] | None = None,
) -> Comparison:
    """Compare what scorers make of runs: those whose scores a run holds, and these.

    An image file is read once and decoded at most once, for all scorers. One that is missing or changed, or that a
    scorer fails on, is named among the problems and left out; the rest is compared.

    Args:
        runs: different folders, of any prompts.
        scorers: scored with where a run does not hold their scores.
        steady: rank the images again under HP&CC by each of `scorers`.
        keep: write the new scores into the run folders; where that fails it is one of the problems.
        seed: of the bootstrap.
        progress: told how many candidates are done.
        failed: told why a run cannot be compared, for every such one, and the others are compared; where there is no
            other the result has no runs. None raises the first such error.

    Raises:
        UsageError: if a run or a scorer is given twice, a run holds no scores and no scorer is given, or `steady` has
            no scorer to ask.
        NothingUsableError: if a run has no candidate that can be compared, or no scorer has a score for any.
    """
    _check(runs, scorers, steady)
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done)

    compared = []
    for run in runs:
        try:
            seen = score_run(run, scorers, ratios=RATIOS if steady else (), told=told)
            if keep:
                seen.keep()
            compared.append(_compare(seen, scorers, seed))
        except SpRerankError as error:
            if not failed:
                raise
            failed(error)
    names = tuple(dict.fromkeys(opinion.scorer for one in compared for opinion in one.opinions))
    several = len(compared) > 1
    return Comparison(
        scorers=names,
        prompts=len({one.prompt for one in compared}),
        runs=tuple(compared),
        pairs=tuple(_mean_pairs(names, compared, seed)) if several else (),
        steadiness=tuple(_mean_steadiness(compared, seed)) if several else (),
    )


def _check(runs: Sequence[RunDir], scorers: Sequence[Scorer], steady: bool) -> None:
    for what, given in (("run", [str(run.path.resolve()) for run in runs]), ("scorer", [s.name for s in scorers])):
        twice = [name for name, count in Counter(given).items() if count > 1]
        if twice:
            raise UsageError(f"the {what} {twice[0]} was given twice; expected each once")
    if not runs:
        raise UsageError("expected one run folder or more, got none")
    if steady and not scorers:
        raise UsageError("how steady a pick is takes a scorer to ask again; name one with --scorer")


# One run


def _compare(seen: ScoredRun, scorers: Sequence[Scorer], seed: int) -> RunComparison:
    run, indices = seen.run, seen.indices
    columns = {name: seen.column(name) for name in seen.scores}
    for name, column in columns.items():
        lost = [index for index, score in seen.scores[name].items() if not math.isfinite(score)]
        if lost:
            seen.problems.append(f"scorer {name}: the score of {named(lost)} is not finite")
        if not any(map(math.isfinite, column)):
            seen.problems.append(f"scorer {name} has no score for any candidate, and is left out")
    columns = {name: column for name, column in columns.items() if any(map(math.isfinite, column))}
    if not columns:
        raise NothingUsableError(
            f"{run.path}: no candidate can be compared: {'; '.join(seen.problems[:3]) or 'it holds none'}"
        )
    loaded = {scorer.name: scorer for scorer in scorers}
    means = ranking.mean_ranks(list(columns.values()))
    places = ranking.top([-mean for mean in means], len(means))
    return RunComparison(
        run=str(run.path),
        prompt=run.config.prompt,
        n=run.n,
        chance_sample=is_chance_sample(run),
        seeds={index: run.rows[index].seed for index in indices},
        scores={
            name: {i: score if math.isfinite(score) else None for i, score in zip(indices, column, strict=True)}
            for name, column in columns.items()
        },
        opinions=tuple(_opinion(name, columns, seen, loaded.get(name, name)) for name in columns),
        pairs=tuple(_pair(a, b, columns, seed) for a, b in combinations(columns, 2)),
        ensemble=tuple(indices[place] for place in places),
        problems=tuple(seen.problems),
    )


def _opinion(name: str, columns: Mapping[str, list[float]], seen: ScoredRun, scorer: Scorer | str) -> Opinion:
    column = columns[name]
    places = ranking.top(column, len(column))
    calibration = calibration_of(scorer)
    groups = ranking.tie_groups([column[place] for place in places], calibration.margin) if calibration else None
    curves = None
    if is_chance_sample(seen.run):
        curves = {other: tuple(best_of_n.expected_best(column, columns[other]).tolist()) for other in columns}
    order = [seen.indices[place] for place in places]
    return Opinion(
        scorer=name,
        order=tuple(order),
        calibration=calibration,
        tie_groups=None if groups is None else tuple(groups),
        stands={other: _rank(columns[other], places[0]) for other in columns},
        best_of_n=curves,
        gain={other: _gain(column, columns[other], curves[other]) for other in columns} if curves else None,
        enough=best_of_n.n_for_gain(curves[name]) if curves else None,
        steadiness=tuple(
            _steadiness(order, ratio, scores) for (of, ratio), scores in seen.perturbed.items() if of == name
        ),
    )


def _rank(scores: Sequence[float], place: int) -> int | None:
    return ranking.order(scores).index(place) + 1 if math.isfinite(scores[place]) else None


def _gain(scores: Sequence[float], worth: Sequence[float], curve: Sequence[float]) -> float:
    """The share of the way from the mean worth to the best that the pick of all has gone; see `Opinion.gain`."""
    both = [w for s, w in zip(scores, worth, strict=True) if math.isfinite(s) and math.isfinite(w)]
    if not both or max(both) == min(both):
        return math.nan
    return (curve[-1] - curve[0]) / (max(both) - curve[0])


def _steadiness(order: Sequence[int], ratio: float, scores: Mapping[int, float]) -> Steadiness:
    """Where the first of `order` stands, and who comes first, by the scores of the perturbed images."""
    again = [sorted(order)[place] for place in ranking.order([scores.get(i, math.nan) for i in sorted(order)])]
    return Steadiness(ratio, again[0], order.index(again[0]) + 1, again.index(order[0]) + 1)


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
        return _within_prompts([(run.prompt, value(run, pair)) for run, pair in both], seed)

    def each_to_the_other(value: Callable[[Opinion, str], float | None]) -> tuple[Estimate, Estimate]:
        first, second = scorers
        return (
            mean(lambda run, _: value(run.opinion(first), second)),
            mean(lambda run, _: value(run.opinion(second), first)),
        )

    return MeanAgreement(
        scorers=scorers,
        kendall=mean(lambda _, pair: pair.kendall.value),
        spearman=mean(lambda _, pair: pair.spearman.value),
        overlap={k: mean(lambda _, pair, k=k: pair.overlap.get(k)) for k in TOP},
        stands=each_to_the_other(lambda opinion, other: opinion.stands[other]),
        gain=each_to_the_other(lambda opinion, other: opinion.gain[other] if opinion.gain else None),
    )


def _mean_steadiness(runs: Sequence[RunComparison], seed: int) -> Iterator[MeanSteadiness]:
    found: dict[tuple[str, float], list[tuple[str, int]]] = {}
    for run in runs:
        for opinion in run.opinions:
            for row in opinion.steadiness:
                found.setdefault((opinion.scorer, row.ratio), []).append((run.prompt, row.went_to))
    for (scorer, ratio), ranks in found.items():
        stays = _within_prompts([(prompt, float(rank == 1)) for prompt, rank in ranks], seed)
        yield MeanSteadiness(scorer, ratio, stays, _within_prompts(ranks, seed))


def _within_prompts(values: Sequence[tuple[str, float | None]], seed: int) -> Estimate:
    """The mean over prompts of the mean over a prompt's values, where these are defined."""
    by_prompt: dict[str, list[float]] = {}
    for prompt, value in values:
        if value is not None and not math.isnan(value):
            by_prompt.setdefault(prompt, []).append(value)
    return agreement.ratio([fmean(several) for several in by_prompt.values()], [1] * len(by_prompt), seed=seed)
