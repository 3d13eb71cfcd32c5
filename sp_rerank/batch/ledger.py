"""A batch as it stands in its store: what makes it this batch, its prompts, what is done and what has failed.

batch.json                  what every unit has in common: the configuration without a prompt, what is kept
prompts/0000-HASH.parquet   rows of the list, as they came; rows that are added later get a file of their own
units/ab/ID.parquet         a unit; `ab` are two digits of the id's hash
failed/ab/ID.json           a unit that failed; moot where there is a unit of the same id
scores/NAME/ab/ID.parquet   scores that were added later
runs/ID/                    run folders, where whole runs are kept

Every object is created once and never changed, so no lock is needed, by however many processes or machines. The
listing is the ledger. Knows objects; knows no model and no engine.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from reprlib import repr as brief
from typing import Literal

from sp_rerank.batch.arrow import arrow
from sp_rerank.batch.batch_config import BatchConfig, refuse_other
from sp_rerank.batch.packs import Pack, packed
from sp_rerank.batch.prompts import PromptRow
from sp_rerank.batch.units import FAILED, UNITS, key_of
from sp_rerank.errors import StorageError, UsageError
from sp_rerank.storage.objects import ObjectStore, open_store

BATCH, PROMPTS = "batch.json", "prompts"

RATED = 200
"""Units that the rate is computed from, the newest."""

ROWS_AT_ONCE = 5_000
"""Rows of a list that are in memory as objects."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a unit failed.

    Attributes:
        id: Of the row.
        status: "failed", or "timeout" where it made no progress.
        error: In one line.
        tries: How often it was tried.
    """

    id: str
    status: Literal["failed", "timeout"]
    error: str
    tries: int


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """How far a batch is, as its store tells.

    Attributes:
        done: Number of units.
        failed: Number of units that failed.
        left: Number of rows that are neither.
        images: Number of candidates of the units that are done.
        rate: Candidates a second over the newest units; 0 where that cannot be told.
        seconds_left: What the rest takes at that rate; None where that cannot be told.
        idle: Seconds since the newest unit; None where there is none.
        failures: Those that failed.
    """

    done: int
    failed: int
    left: int
    images: int
    rate: float
    seconds_left: float | None
    idle: float | None
    failures: Sequence[Failure]


class Ledger:
    """A batch in its store.

    Args:
        place: Folder or URL.
    """

    def __init__(self, place: str | Path) -> None:
        self.store: ObjectStore = open_store(place)

    @property
    def place(self) -> str:
        """The folder or URL."""
        return self.store.place

    @property
    def config(self) -> BatchConfig | None:
        """What the units have in common; None before the first worker is ready.

        Raises:
            UsageError, StorageError: As `BatchConfig.from_bytes`.
        """
        data = self.store.read(BATCH)
        return None if data is None else BatchConfig.from_bytes(data, f"{self.place}/{BATCH}")

    def check(self) -> None:
        """Check that there is a batch.

        Raises:
            UsageError: If there is none.
        """
        if next(self.store.list(f"{PROMPTS}/"), None) is None:
            raise UsageError(f"{self.place} holds no batch; expected the folder or URL of one")

    def join(self, config: BatchConfig) -> None:
        """Begin the batch with this configuration, or find that it is that of the batch.

        Raises:
            UsageError: Naming up to three differences.
        """
        data = config.to_bytes()
        if self.store.create(BATCH, data):
            return
        asked = BatchConfig.from_bytes(data, BATCH)  # as JSON gives it back: a tuple compares as a list
        held = self.config
        refuse_other(self.place, [] if held is None else held.differences(asked))

    def add_prompts(self, rows: Iterable[PromptRow]) -> int:
        """Make the rows of a list part of the batch; rows that it has stay as they are.

        Returns:
            The number of all its rows.

        Raises:
            UsageError: If a row of the batch is another one in the list, or not in it: it is another list.
        """
        held = {row.id: _digest(row) for row in self.rows()}
        table, met = _RowTable(), 0
        for row in rows:
            if row.id not in held:
                table.add(row)
                continue
            met += 1
            if held[row.id] != _digest(row):
                raise UsageError(
                    f"{self.place} has another prompt list: the row {brief(row.id)} was {_shown(self._row(row.id))}, "
                    f"is {_shown(row)} now; choose another folder, or give the row another id"
                )
        if met < len(held):
            raise UsageError(
                f"{self.place} has another prompt list: {len(held) - met} of its {len(held)} rows are not in this one; "
                "choose another folder (rows can be added, not taken away)"
            )
        if table.count:
            number = len(list(self.store.list(f"{PROMPTS}/")))
            self.store.create(f"{PROMPTS}/{number:04d}-{table.digest}.parquet", table.to_bytes())
        return len(held) + table.count

    def _row(self, row_id: str) -> PromptRow:
        return next(row for row in self.rows() if row.id == row_id)

    def rows(self) -> Iterator[PromptRow]:
        """The rows of the batch, in their order; no two with the same id."""
        return (pack.rows[0] for pack in self.packs(1))

    def packs(self, size: int) -> Iterator[Pack]:
        """The rows of the batch as they are made together, in their order; no two with the same id are due.

        What was added to a list is packed by itself, so that the packs of what was there stay as they are.
        """
        seen: set[str] = set()
        files = sorted(entry.key for entry in self.store.list(f"{PROMPTS}/"))
        for key in files:
            rows = _decode_rows(self.store.read(key) or b"", f"{self.place}/{key}")
            for pack in packed(rows, size):
                if len(files) > 1:
                    pack = pack.without(seen.__contains__)
                    seen.update(pack.ids)
                if pack.due:
                    yield pack

    def keys(self, kind: str) -> dict[str, float]:
        """The names of the units that are done (UNITS) or have failed (FAILED), with when they were committed."""
        return {entry.key[len(kind) + 1 :].rpartition(".")[0]: entry.modified for entry in self.store.list(f"{kind}/")}

    def settled(self) -> Callable[[str], bool]:
        """Whether the unit of a row's id is done or has failed, as of now."""
        names = self.keys(UNITS).keys() | self.keys(FAILED).keys()
        return lambda row_id: _name(row_id) in names

    def fail(self, failure: Failure) -> None:
        """Write down that a unit failed."""
        self.store.create(key_of(failure.id, FAILED, "json"), json.dumps(asdict(failure)).encode() + b"\n")

    def failures(self) -> list[Failure]:
        """The units that failed and are not done."""
        done = self.keys(UNITS)
        keys = [f"{FAILED}/{name}.json" for name in self.keys(FAILED) if name not in done]
        found = [self.store.read(key) for key in sorted(keys)]
        return [Failure(**json.loads(data)) for data in found if data]

    def retry(self) -> int:
        """Make the units that failed due again.

        Returns:
            Their number.

        Raises:
            UsageError: If there is no batch.
        """
        self.check()
        names = self.keys(FAILED)
        for name in names:
            self.store.delete(f"{FAILED}/{name}.json")
        return len(names.keys() - self.keys(UNITS).keys())

    def status(self) -> BatchStatus:
        """How far the batch is; asks no engine.

        Raises:
            UsageError: If there is no batch.
        """
        self.check()
        config, done, failed = self.config, self.keys(UNITS), self.keys(FAILED)
        n, images, left, images_left, sizes = config.config.n if config else 0, 0, 0, 0, {}
        for row in self.rows():
            name, size = _name(row.id), row.n or n
            if name in done:
                images, sizes[name] = images + size, size
            elif name not in failed:
                left, images_left = left + 1, images_left + size
        newest = sorted(done.items(), key=lambda item: item[1])[-RATED:]
        lasted = newest[-1][1] - newest[0][1] if newest else 0.0
        rate = sum(sizes.get(name, n) for name, _ in newest[1:]) / lasted if lasted > 0 else 0.0
        return BatchStatus(
            done=len(done),
            failed=len(failed.keys() - done.keys()),
            left=left,
            images=images,
            rate=rate,
            seconds_left=images_left / rate if rate else None,
            idle=max(0.0, time.time() - newest[-1][1]) if newest else None,
            failures=self.failures(),
        )


def _name(row_id: str) -> str:
    return key_of(row_id).split("/", 1)[1].removesuffix(".parquet")


def _digest(row: PromptRow) -> str:
    return sha256(json.dumps(asdict(row), sort_keys=True).encode()).hexdigest()[:16]


def _shown(row: PromptRow) -> str:
    return brief({"prompt": row.prompt, **row.overrides})


_COLUMNS = tuple(entry.name for entry in fields(PromptRow))


class _RowTable:
    """Rows as a parquet file, in memory as bytes but for the last few."""

    def __init__(self) -> None:
        pa, parquet = arrow()
        kinds = dict.fromkeys(("n", "height", "width", "steps"), pa.int32()) | {"seed": pa.int64()}
        self._schema = pa.schema([(name, kinds.get(name, pa.string())) for name in _COLUMNS])
        self._file, self._hash = io.BytesIO(), sha256()
        self._writer = parquet.ParquetWriter(self._file, self._schema, compression="zstd")
        self._rows: list[PromptRow] = []
        self.count = 0

    def add(self, row: PromptRow) -> None:
        self._rows.append(row)
        self._hash.update(_digest(row).encode())
        self.count += 1
        if len(self._rows) == ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        pa, _ = arrow()
        columns = [pa.array([getattr(row, field.name) for row in self._rows], field.type) for field in self._schema]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._rows = []

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()[:16]

    def to_bytes(self) -> bytes:
        if self._rows:
            self._flush()
        self._writer.close()
        return self._file.getvalue()


def _decode_rows(data: bytes, name: str) -> Iterator[PromptRow]:
    pa, parquet = arrow()
    try:
        for batch in parquet.ParquetFile(io.BytesIO(data)).iter_batches(ROWS_AT_ONCE):
            for record in batch.to_pylist():
                yield PromptRow(**record)
    except (pa.ArrowException, TypeError) as error:
        raise StorageError(f"{name} is damaged: {error}; restore it from a copy") from error
