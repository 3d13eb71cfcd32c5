"""What a comparison of scorers holds: a run by each scorer, agreement of any two, averages over runs.

Knows the figures and how they are called. Knows nothing of how they are computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from sp_rerank.scorers.calibration import ScorerCalibration
from sp_rerank.stats.agreement import Estimate

TOP = (1, 4, 10)
"""The k of the top-k overlap."""


@dataclass(frozen=True, slots=True)
class Robustness:
    """What HP&CC does to a scorer's pick: all images mirrored and cropped alike, and ranked again.

    Attributes:
        ratio: Of the sides after the crop to those before; 1 is the mirror alone.
        pick: Index of the candidate that is ranked first now.
        came_from: Its rank before.
        went_to: The rank now of the candidate that was ranked first; 1 where it stays.
    """

    ratio: float
    pick: int
    came_from: int
    went_to: int


@dataclass(frozen=True, slots=True)
class ScorerView:
    """A run by one scorer.

    Attributes:
        scorer: Full name.
        order: Indices of the candidates with a finite score, the best first.
        calibration: The scorer's; None where there is none, and then it is not known which candidates tie.
        tie_groups: Of the candidates in `order`; None without a calibration.
        rank_by: The rank of this scorer's pick by each scorer, by full name: 1 by its own; None where that one has no
            score for it.
        best_of_n: By each scorer's full name its expected score of this scorer's pick of n = 1, 2, ... candidates.
            None, like the next two, where the candidates are no chance sample; see
            `sp_rerank.report.orderings.is_chance_sample`.
        normalized_gain: By each scorer's full name how far this scorer's pick of all goes from that one's mean
            candidate (0) to its best (1): 1 by its own, 0 for a random pick, NaN where all scores are equal.
        n_for_gain: The number of candidates that reach `best_of_n.ENOUGH` of its own gain.
        robustness: A row a ratio; empty where it was not asked for.
    """

    scorer: str
    order: tuple[int, ...]
    calibration: ScorerCalibration | None
    tie_groups: tuple[int, ...] | None
    rank_by: dict[str, int | None]
    best_of_n: dict[str, tuple[float, ...]] | None
    normalized_gain: dict[str, float] | None
    n_for_gain: int | None
    robustness: tuple[Robustness, ...]

    @property
    def tied_first(self) -> tuple[int, ...] | None:
        """The candidates that are not told apart from its pick, which is among them; None without a calibration."""
        if self.tie_groups is None:
            return None
        return tuple(index for index, group in zip(self.order, self.tie_groups, strict=True) if group == 1)


@dataclass(frozen=True, slots=True)
class PairAgreement:
    """How far two scorers agree about the candidates of one run.

    Attributes:
        scorers: their full names.
        kendall: tau-b, with its interval over candidates.
        spearman: Spearman's rank correlation, with its interval as well.
        overlap: by k, the share of the one's k best that are among the other's; those of TOP that the run has.
    """

    scorers: tuple[str, str]
    kendall: Estimate
    spearman: Estimate
    overlap: dict[int, float]


@dataclass(frozen=True, slots=True)
class RunComparison:
    """One run by all scorers.

    Attributes:
        run: path of the folder.
        prompt: Prompt of the run.
        n: candidates that the run is to have.
        chance_sample: Whether the compared candidates are independent draws; False for a search's finalists and for
            steered ones.
        seeds: Seed by the index of each candidate that is compared.
        scores: Scores by scorer, then by index; None where there is no finite one.
        views: One a scorer.
        pairs: Agreement of each two scorers.
        ensemble: indices by the mean of their ranks, the best first; those that every scorer has a score for.
        problems: what was left out and why, a line each.
        failed: Scorers that failed on every image, with the first reason; they are in no other attribute.
    """

    run: str
    prompt: str
    n: int
    chance_sample: bool
    seeds: dict[int, int]
    scores: dict[str, dict[int, float | None]]
    views: tuple[ScorerView, ...]
    pairs: tuple[PairAgreement, ...]
    ensemble: tuple[int, ...]
    problems: tuple[str, ...]
    failed: dict[str, str]

    def view(self, scorer: str) -> ScorerView:
        """The view of one scorer, by its full name."""
        return next(view for view in self.views if view.scorer == scorer)


@dataclass(frozen=True, slots=True)
class MeanAgreement:
    """How far two scorers agree on several runs: the mean over a prompt's runs, then over prompts; never pooled.

    Attributes:
        scorers: their full names.
        kendall: Mean of Kendall's tau with its interval over prompts, as all here; n is the number of prompts.
        spearman: Spearman's rank correlation, with its interval as well.
        overlap: Mean overlap of the best k, by k.
        rank_by: The rank of the first one's pick by the second, and the other way round.
        normalized_gain: Of the first one's pick by the second, and the other way round; see `ScorerView`.
    """

    scorers: tuple[str, str]
    kendall: Estimate
    spearman: Estimate
    overlap: dict[int, Estimate]
    rank_by: tuple[Estimate, Estimate]
    normalized_gain: tuple[Estimate, Estimate]


@dataclass(frozen=True, slots=True)
class MeanRobustness:
    """How often a scorer's pick stays under HP&CC, averaged as in `MeanAgreement`.

    Attributes:
        scorer: full name.
        ratio: as in `Robustness`.
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
        robustness: Averages; empty for one run.
    """

    scorers: tuple[str, ...]
    prompts: int
    runs: tuple[RunComparison, ...]
    pairs: tuple[MeanAgreement, ...]
    robustness: tuple[MeanRobustness, ...]
