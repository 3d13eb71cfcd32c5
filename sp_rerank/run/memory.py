"""A run without a folder: its rows, and the images of the candidates that may still be among the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sp_rerank.config import RunConfig
from sp_rerank.run.records import Row, StageScore
from sp_rerank.run.state import Finished, RunState, dropped_row
from sp_rerank.storage import atomic

if TYPE_CHECKING:
    from sp_rerank.run.summary import RunSummary
    from sp_rerank.types import Candidate

NO_IMAGE = atomic.sha256_of(b"")


class MemoryRun:
    """A `sp_rerank.run.state.Store` in memory.

    Args:
        config: Of the run.
        keep: How many of the best candidates' images are held.
    """

    def __init__(self, config: RunConfig, keep: int) -> None:
        self.state = RunState(config, {})
        self._keep = keep
        self._candidates: dict[int, Candidate] = {}

    def add(self, batch: Sequence[Finished]) -> None:
        """Keep rows, and the images of the best so far."""
        for made in batch:
            pixels = made.candidate.image.tobytes()
            self.state.put_rows({made.candidate.index: Row.of(pixels, made, self.state.stages)})
            self._candidates[made.candidate.index] = made.candidate
        if len(self._candidates) <= self._keep:
            return
        best = set(self.state.best(self._keep))
        self._candidates = {index: candidate for index, candidate in self._candidates.items() if index in best}

    def add_stages(self, batch: Sequence[tuple[Candidate, StageScore]]) -> None:
        """Keep the scores; the images of stages are for folders."""
        self.state.note_stages([(candidate.index, seen) for candidate, seen in batch])

    def add_dropped(self) -> None:
        """Add a row for each candidate that the search did not finish."""
        for index in self.state.unfinished():
            self.state.put_rows({index: dropped_row(self.state, index, NO_IMAGE)})

    def candidate(self, index: int) -> Candidate:
        """One of the best candidates with its image."""
        return self._candidates[index]

    def finish(self, best: Sequence[int], summary: RunSummary, present: Callable[..., None]) -> None:
        """Nothing: a run in memory has no folder to conclude."""
