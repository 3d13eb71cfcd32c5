"""The candidates of a run so far, wherever they are kept: order, best, what was spent, what a search need not do again.

`RunWriter` keeps them in a folder, `MemoryRun` in memory; both are a `Store`. Knows rows and scores. Knows no file.
"""

from __future__ import annotations

import heapq
import math
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from sp_rerank.config import RunConfig, Stage
from sp_rerank.run.records import Row, StageScore, Status
from sp_rerank.stats import ranking

if TYPE_CHECKING:
    from sp_rerank.run.summary import RunSummary
    from sp_rerank.types import Candidate

PriorScores = Mapping[Stage | None, Mapping[int, float]]
"""Scores by stage and index, NaN where one is not finite; the stage None holds the finished candidates."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A candidate that was made with all steps, before it is committed.

    Attributes:
        candidate: Its image.
        status: "ok", "flagged" or "nonfinite".
        scores: By the scorer's full name; NaN where one is not finite.
        nfe: Evaluations of the denoiser, those of earlier stages included.
        batch_size: Of the batch that it was made in.
    """

    candidate: Candidate
    status: Status
    scores: Mapping[str, float]
    nfe: int
    batch_size: int


class RunState:
    """What is known of a run's candidates.

    Attributes:
        config: Of the run.
        rows: The committed candidates by index.
        stages: What a search saw of each candidate before it was finished, in order; of committed ones too.
    """

    def __init__(self, config: RunConfig, rows: dict[int, Row]) -> None:
        self.config = config
        self.stages: dict[int, tuple[StageScore, ...]] = {}
        self._seen: Counter[Stage | None] = Counter()
        self.replace_rows(rows)
        self.replace_stages({index: row.stages for index, row in rows.items() if row.stages})

    def replace_rows(self, rows: dict[int, Row]) -> None:
        """Take these rows in place of all that there are."""
        self.rows = rows
        self._ranked: tuple[int, dict[int, float]] = (0, {})
        """Of how many rows, and their mean ranks."""
        self._leaders: list[tuple[float, int]] = []
        """(-score, index) of the best usable rows, the best first."""
        self._places: int | None = None
        """How many leaders are kept; None before anybody has asked."""
        self._seen[None] = sum(row.status != "dropped" for row in rows.values())

    def put_rows(self, rows: Mapping[int, Row]) -> None:
        """Add rows, or put them in place of the ones that their indices have.

        One that only gets its hash changes nothing else, so that a thread may do it beside the run.
        """
        for index, row in rows.items():
            before = self.rows.get(index)
            self.rows[index] = row
            if before is None:
                self._seen[None] += row.status != "dropped"
                self._lead(index)
            elif (before.status, before.scores) != (row.status, row.scores):
                self.replace_rows(self.rows)

    def forget_rows(self, indices: Iterable[int]) -> None:
        """Take rows back, as far as they are there."""
        gone = set(indices)
        self.replace_rows({index: row for index, row in self.rows.items() if index not in gone})

    def replace_stages(self, stages: dict[int, tuple[StageScore, ...]]) -> None:
        """Take what was seen on the way in place of all that is noted."""
        self.stages = stages
        finished = self._seen[None]
        self._seen = Counter(seen.stage for stages in self.stages.values() for seen in stages)
        self._seen[None] = finished

    def _lead(self, index: int) -> None:
        """Put a new row among the leaders, if it belongs there."""
        if self._places is None or self.config.members:  # a mean of ranks changes with every other candidate
            return
        score = self.score(index)
        if math.isfinite(score):
            insort(self._leaders, (-score, index))
            del self._leaders[self._places :]

    @property
    def first_scorer(self) -> str:
        """The scorer whose scores come with a batch: the one that ranks, of a mean of ranks its first member."""
        return (self.config.members or self.config.scorers)[0]

    @property
    def n(self) -> int:
        """Number of candidates that the run is to have."""
        return self.config.n

    @property
    def missing(self) -> list[int]:
        """Indices that are not committed yet, rising; empty once the run is complete."""
        return [index for index in range(self.n) if index not in self.rows]

    @property
    def finished(self) -> dict[int, Row]:
        """The candidates that were made with all steps."""
        return {index: row for index, row in self.rows.items() if row.status != "dropped"}

    @property
    def nfe(self) -> int:
        """Evaluations of the denoiser that were spent, on all candidates and stages."""
        unfinished = (stage for index, seen in self.stages.items() if index not in self.rows for stage in seen)
        return sum(row.nfe for row in self.rows.values()) + sum(stage.nfe for stage in unfinished)

    @property
    def nfe_each(self) -> int:
        """Evaluations that finishing one candidate takes; 0 where none is finished."""
        return max((row.own_nfe for row in self.finished.values()), default=0)

    def count(self, status: Status) -> int:
        """Number of committed candidates of a status."""
        return sum(row.status == status for row in self.rows.values())

    def score(self, index: int) -> float:
        """The score of a candidate by the scorer that ranks; NaN where it is not usable."""
        row = self.rows[index]
        if not self.config.scorers or row.status != "ok":
            return math.nan
        if self.config.members:
            return self._mean_ranks().get(index, math.nan)
        score = row.scores.get(self.config.scorers[0])
        return math.nan if score is None else score

    def _mean_ranks(self) -> dict[int, float]:
        """Minus the mean rank of each usable candidate among those that there are, so that higher is better."""
        if self._ranked[0] != len(self.rows):
            usable = [index for index, row in self.rows.items() if row.status == "ok"]
            columns = [[_number(self.rows[index].scores.get(name)) for index in usable] for name in self.config.members]
            means = ranking.mean_ranks(columns)
            self._ranked = len(self.rows), {index: -mean for index, mean in zip(usable, means, strict=True)}
        return self._ranked[1]

    def ranked_rows(self) -> dict[int, Row]:
        """The rows by index; where a mean of ranks ranks, with it among the scores, as it is by now."""
        rows = dict(sorted(self.rows.items()))
        if not self.config.members:
            return rows
        name = self.config.scorers[0]
        scores = {index: score if math.isfinite(score := self.score(index)) else None for index in rows}
        members = {
            index: {key: value for key, value in row.scores.items() if key != name} for index, row in rows.items()
        }
        return {index: replace(row, scores={**members[index], name: scores[index]}) for index, row in rows.items()}

    def best(self, k: int) -> list[int]:
        """Indices of the k usable candidates with the highest scores, the best first; ties go to the lower index."""
        if self.config.members or self._places is None or k > self._places:
            usable = [(-score, index) for index in self.rows if math.isfinite(score := self.score(index))]
            self._leaders, self._places = heapq.nsmallest(k, usable), k
        return [index for _, index in self._leaders[:k]]

    def order(self) -> list[int]:
        """All candidates that were seen: finished ones from the best to the worst, then those that were dropped."""
        indices = sorted(self.finished)
        places = ranking.order([self.score(index) for index in indices])
        return [*(indices[place] for place in places), *self.unfinished()]

    def unfinished(self) -> list[int]:
        """Candidates that a search saw and did not finish: those kept longest first, then by their last score."""
        finished = self.finished

        def place(index: int) -> tuple[int, float, int]:
            score = self.stages[index][-1].score
            return -len(self.stages[index]), math.inf if score is None else -score, index

        return sorted((index for index in self.stages if index not in finished), key=place)

    def prior_scores(self) -> PriorScores:
        """What a search need not make or score again."""
        prior: dict[Stage | None, dict[int, float]] = {None: {index: self.score(index) for index in self.finished}}
        for index, stages in self.stages.items():
            for seen in stages:
                prior.setdefault(seen.stage, {})[index] = math.nan if seen.score is None else seen.score
        return prior

    def reached(self, stage: Stage | None) -> int:
        """Number of candidates that were scored at a stage; finished ones for None."""
        return self._seen[stage]

    def seen_at(self, stage: Stage | None) -> list[int]:
        """Indices of the candidates that were scored at a stage; of the finished ones for None."""
        if stage is None:
            return list(self.finished)
        return [index for index, stages in self.stages.items() if any(seen.stage == stage for seen in stages)]

    def note_stages(self, batch: Sequence[tuple[int, StageScore]]) -> None:
        """Add to what was seen of candidates."""
        for index, seen in batch:
            self.stages[index] = (*self.stages.get(index, ()), seen)
            self._seen[seen.stage] += 1


def _number(score: float | None) -> float:
    return math.nan if score is None else score


class Store(Protocol):
    """Where a running search keeps its candidates; see `RunState` for what can be asked of it."""

    @property
    def state(self) -> RunState:
        """What is known so far."""
        ...

    def add(self, batch: Sequence[Finished]) -> None:
        """Keep finished candidates; one that is there already stays as it is."""
        ...

    def add_stages(self, batch: Sequence[tuple[Candidate, StageScore]]) -> None:
        """Keep what a search saw of candidates on the way."""
        ...

    def add_dropped(self) -> None:
        """Make the candidates that the search did not finish part of the run, as it saw them last."""
        ...

    def candidate(self, index: int) -> Candidate:
        """One of the best candidates with its image."""
        ...

    def finish(self, best: Sequence[int], summary: RunSummary, present: Callable[..., None]) -> None:
        """Conclude the run; `present` draws the pages of a folder."""
        ...


def dropped_row(state: RunState, index: int, sha256: str) -> Row:
    """The row of a candidate that a search did not finish."""
    stages = state.stages[index]
    return Row(
        index=index,
        seed=state.config.seed + index,
        status="dropped",
        scores=dict.fromkeys(state.config.scorers),
        sha256=sha256,
        nfe=sum(seen.nfe for seen in stages),
        batch_size=state.config.batch_size,
        stages=stages,
    )
