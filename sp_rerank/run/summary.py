"""How a run ended and what came out: result.json, and the result that `generate` returns. Knows no folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from reprlib import repr as brief
from typing import Any, Literal, cast, get_args, overload

from sp_rerank.errors import StorageError
from sp_rerank.run.json_text import Record, encoded, is_score, is_text, is_whole, loads
from sp_rerank.run.records import SCHEMA
from sp_rerank.storage.notebook_html import pictures_html
from sp_rerank.types import Ranked

EndedBy = Literal["complete", "confidence", "max_evaluations", "max_seconds"]


@dataclass(frozen=True, slots=True)
class Ended:
    """Why a run ended.

    Attributes:
        by: "complete", or the name of the rule of `sp_rerank.config.StopRules` that ended it.
        detail: The rule's figures in words; empty for a complete run.
    """

    by: EndedBy = "complete"
    detail: str = ""

    def __post_init__(self) -> None:
        if self.by not in get_args(EndedBy):
            raise ValueError(f"a run ends by one of {', '.join(get_args(EndedBy))}, not {brief(self.by)}")
        if not is_text(self.detail):
            raise ValueError(f"the detail of an end should be text, not {brief(self.detail)}")


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a run ended and what came out: result.json, written last. Where it exists the run is done.

    Attributes:
        best: Indices of the kept candidates, the best first.
        tie_groups: Of those; candidates of one group are not reliably told apart.
        ended: Why the run ended.
        n: Number of candidates of the whole run.
        made: Number of candidates that were made, dropped ones included.
        nfe: Evaluations of the denoiser that were spent.
        nfe_exhaustive: Evaluations that finishing all n candidates takes.
        flagged: Number of candidates that the safety checker replaced.
        nonfinite: Number of candidates whose pixels or scores are not finite.
        dropped: Number of candidates that a search did not finish.
        score_cost: Mean score that a diverse choice gives away against the best as many; 0 otherwise.
        margin: The gap of scores below which two of them tie; 0 where it is not known.
    """

    best: tuple[int, ...]
    tie_groups: tuple[int, ...]
    ended: Ended
    n: int
    made: int
    nfe: int
    nfe_exhaustive: int
    flagged: int
    nonfinite: int
    dropped: int
    score_cost: float = 0.0
    margin: float = 0.0

    def __post_init__(self) -> None:
        for name in ("n", "made", "nfe", "nfe_exhaustive", "flagged", "nonfinite", "dropped"):
            if not is_whole(getattr(self, name)):
                raise ValueError(f"{name} should be a whole number from 0 on, not {brief(getattr(self, name))}")
        if not all(map(is_whole, (*self.best, *self.tie_groups))) or len(self.best) != len(self.tie_groups):
            raise ValueError("best and tie_groups should be whole numbers, as many of each")
        for name in ("score_cost", "margin"):
            if not is_score(getattr(self, name)):
                raise ValueError(f"{name} should be a finite number, not {brief(getattr(self, name))}")


def encode_summary(summary: RunSummary) -> bytes:
    """The text of result.json; equal summaries give equal bytes."""
    return encoded({**asdict(summary), "schema": SCHEMA})


def parse_summary(text: bytes, name: str) -> RunSummary:
    """The summary in a result.json; keys that this version does not know are ignored.

    Raises:
        StorageError: If it is damaged.
    """
    try:
        record = loads(text)
        ended: Any = record.get("ended")
        if not isinstance(ended, dict):
            raise ValueError("ended should be an object")
        values: Record = {entry.name: record.get(entry.name) for entry in fields(RunSummary)}
        for key in ("best", "tie_groups"):
            if not isinstance(values[key], list):
                raise ValueError(f"{key} should be a list")
            values[key] = tuple(values[key])
        values["margin"] = 0.0 if values["margin"] is None else values["margin"]  # of an older version
        if values["score_cost"] is None:
            raise ValueError("score_cost is missing")
        reason = cast("Record", ended)
        values["ended"] = Ended(reason.get("by", ""), reason.get("detail", ""))  # type: ignore[arg-type]
        return RunSummary(**values)
    except ValueError as error:
        raise StorageError(f"{name} is damaged: {error}; resuming the run writes it again") from error


def ranked_html(ranked: Sequence[Ranked], counted: str) -> str:
    """Ranked images as HTML for a notebook, with what they are in words, such as "the best 4 of 100"."""
    prompt = f" for \u201c{ranked[0].prompt}\u201d" if ranked and ranked[0].prompt else ""
    captions = [
        f"{entry.rank}: {entry.score:.4f}{'' if entry.seed is None else f', seed {entry.seed}'}" for entry in ranked
    ]
    return pictures_html(f"{counted}{prompt}", list(zip((entry.image for entry in ranked), captions, strict=True)))


@dataclass(frozen=True, slots=True, eq=False)
class RunResult(Sequence[Ranked]):
    """The best candidates of a run, the best first, and what the run came to.

    Attributes:
        best: The kept candidates.
        summary: How the run ended and what it spent.
        folder: The run folder; None for a run in memory.

    Example:
        >>> result = generate("a lemon", pipe=pipe, scorer=scorer, n=20)
        >>> result[0].image.save("lemon.png")
        >>> print(result.nfe, result.ended.by)
        340 complete
    """

    best: tuple[Ranked, ...]
    summary: RunSummary
    folder: Path | None = None

    def _repr_html_(self) -> str:
        """The kept images in a notebook."""
        return ranked_html(self.best, f"the best {len(self.best)} of {self.summary.made}")

    @overload
    def __getitem__(self, place: int) -> Ranked: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Ranked, ...]: ...
    def __getitem__(self, place: int | slice) -> Ranked | tuple[Ranked, ...]:
        return self.best[place]

    def __len__(self) -> int:
        return len(self.best)

    def __iter__(self) -> Iterator[Ranked]:
        return iter(self.best)

    @property
    def nfe(self) -> int:
        """Evaluations of the denoiser that were spent, on all candidates."""
        return self.summary.nfe

    @property
    def nfe_exhaustive(self) -> int:
        """Evaluations that finishing all candidates takes."""
        return self.summary.nfe_exhaustive

    @property
    def dropped(self) -> int:
        """Number of candidates that a search did not finish."""
        return self.summary.dropped

    @property
    def ended(self) -> Ended:
        """Why the run ended."""
        return self.summary.ended

    @property
    def score_cost(self) -> float:
        """Mean score that a diverse choice gives away against the best as many; 0 otherwise."""
        return self.summary.score_cost
