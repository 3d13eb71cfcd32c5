"""Prompts that are made together: which rows of a list share calls of the pipeline.

A call of another size makes other pixels, if only in their last digits, so the pack is a part of what a unit is: it
follows from the list and from `pack` alone. Knows rows; knows no store, model or engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sp_rerank.batch.prompts import PromptRow
from sp_rerank.config import EXHAUSTIVE, GenerationOptions
from sp_rerank.errors import OptionError

AUTO = "auto"

LARGEST = 1000
"""Prompts of a pack: their images are in memory together."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Rows that are made together, and what a worker is handed.

    Attributes:
        rows: In the order of the list; most often a single one.
        due: Ids of those whose units are wanted. The others are made too, for the pixels' sake, and not kept.
    """

    rows: tuple[PromptRow, ...]
    due: tuple[str, ...]

    @classmethod
    def of(cls, *rows: PromptRow) -> Pack:
        """A pack of which every unit is wanted."""
        return cls(rows, tuple(row.id for row in rows))

    @property
    def ids(self) -> tuple[str, ...]:
        """Of all rows."""
        return tuple(row.id for row in self.rows)

    def without(self, done: Callable[[str], bool]) -> Pack:
        """The same rows, with fewer units wanted: those whose ids are not done."""
        return replace(self, due=tuple(row_id for row_id in self.due if not done(row_id)))

    def alone(self) -> list[Pack]:
        """The rows that are due, each by itself."""
        return [Pack.of(row) for row in self.rows if row.id in self.due]

    def to_record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Pack:
        """As `to_record` gave it."""
        return cls(tuple(PromptRow(**row) for row in record["rows"]), tuple(record["due"]))


def packed(rows: Iterable[PromptRow], size: int) -> Iterator[Pack]:
    """Consecutive rows by up to `size`, as far as one call can make them: rows of other steps or sides begin anew."""
    held: list[PromptRow] = []
    for row in rows:
        if held and (len(held) == size or _shape(row) != _shape(held[0])):
            yield Pack.of(*held)
            held = []
        held.append(row)
    if held:
        yield Pack.of(*held)


def _shape(row: PromptRow) -> tuple[object, ...]:
    """What all images of a call have in common."""
    return row.steps, row.height, row.width, row.negative_prompt


def pack_size(text: str, options: GenerationOptions) -> int:
    """How many prompts are made together.

    Args:
        text: A number, or "auto": as many as fill a batch.
        options: Of the batch.

    Raises:
        OptionError: If it is neither, or "auto" where the size of a batch is not given.
    """
    if text == AUTO:
        if options.batch_size is None:
            raise OptionError("pack", AUTO, "a number, or auto together with a batch size: the prompts that fill it")
        return min(LARGEST, max(1, options.batch_size // options.n))
    if not (text.isdecimal() and 1 <= int(text) <= LARGEST):
        raise OptionError("pack", text, f"{AUTO}, or a number of prompts from 1 to {LARGEST}")
    return int(text)


def check_pack(size: int, options: GenerationOptions, keep: str) -> None:
    """Refuse to pack what is made prompt by prompt.

    Raises:
        OptionError: If prompts are packed, and searched, ended early or kept as whole runs.
    """
    if size == 1:
        return
    if options.search != EXHAUSTIVE or options.record or options.stop:
        raise OptionError("pack", size, f"1: only an {EXHAUSTIVE} search that never ends early packs prompts")
    if keep == "run":
        raise OptionError("pack", size, "1: whole run folders are made prompt by prompt")
