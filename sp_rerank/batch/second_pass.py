"""Scores by other scorers, added to a batch that is made: for the images that were kept, an object a unit.

scores/NAME/ab/ID.parquet    columns prompt_id, index, score; NAME is the scorer's

Like a unit such an object is created once, so the pass can be cut short, go on, and run in several processes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sp_rerank.batch.arrow import arrow
from sp_rerank.batch.ledger import Ledger
from sp_rerank.batch.units import UNITS, StoredUnit, decode, key_of, name_of, write_table
from sp_rerank.errors import NothingUsableError, StorageError
from sp_rerank.scorers.scoring import score_images
from sp_rerank.storage.images import read_image

if TYPE_CHECKING:
    from sp_rerank.types import Scorer

SCORES = "scores"


def score_batch(ledger: Ledger, scorer: Scorer, progress: Callable[[int], None] = lambda done: None) -> int:
    """Score the kept images of every unit that this scorer has not scored yet.

    Args:
        ledger: The batch.
        scorer: Any scorer.
        progress: Called with the number of units that are scored.

    Returns:
        The number of units that were scored by this call.

    Raises:
        UsageError: If there is no batch, or the scorer fails.
        NothingUsableError: If no unit holds an image.
        StorageError: If the batch cannot be read or written.
    """
    ledger.check()
    kind = f"{SCORES}/{name_of(scorer.name)}"
    known, done, empty = ledger.keys(kind), 0, 0
    for unit in units_of(ledger, known):
        images = {entry["index"]: entry["image"] for entry in unit.kept}
        if not images:
            empty += 1
            continue
        opened = [read_image(lambda data=data: io.BytesIO(data), unit.row.id) for data in images.values()]
        scores = score_images(scorer, unit.row.prompt, opened, last_use=True)
        ledger.store.create(
            key_of(unit.row.id, kind), _encode(unit, scorer.name, dict(zip(images, scores, strict=True)))
        )
        done += 1
        progress(done)
    if empty and not (done or known):
        raise NothingUsableError(
            f"{ledger.place} keeps no images; a batch that keeps the top or all can be scored again"
        )
    return done


def units_of(ledger: Ledger, leave_out: Mapping[str, object] | None = None) -> Iterator[StoredUnit]:
    """The units that are done, in the order of the prompts, with the scores that were added.

    Args:
        ledger: The batch.
        leave_out: Names of units that are not wanted.
    """
    done = ledger.keys(UNITS)
    kinds = sorted({entry.key.rsplit("/", 2)[0] for entry in ledger.store.list(f"{SCORES}/")})
    for row in ledger.rows():
        key = key_of(row.id)
        name = key[len(UNITS) + 1 :].removesuffix(".parquet")
        if name in done and not (leave_out and name in leave_out):
            data = ledger.store.read(key)
            if data is None:
                raise StorageError(f"{ledger.place}/{key} has gone; the same command makes it again")
            yield _with_added(ledger, kinds, decode(data, f"{ledger.place}/{key}"))


def _with_added(ledger: Ledger, kinds: list[str], unit: StoredUnit) -> StoredUnit:
    columns: dict[str, dict[int, float]] = {}
    for kind in kinds:
        data = ledger.store.read(key_of(unit.row.id, kind))
        if data:
            _, parquet = arrow()
            table = parquet.read_table(io.BytesIO(data))
            name = table.schema.metadata[b"sp_rerank"].decode()
            columns[name] = {entry["index"]: entry["score"] for entry in table.to_pylist()}
    if not columns:
        return unit
    candidates = {
        index: {**entry, **{name: column.get(index) for name, column in columns.items()}}
        for index, entry in unit.candidates.items()
    }
    return replace(unit, candidates=candidates)


def _encode(unit: StoredUnit, name: str, scores: Mapping[int, float]) -> bytes:
    pa, _ = arrow()
    columns = {
        "prompt_id": [unit.row.id] * len(scores),
        "index": pa.array(list(scores), pa.int32()),
        "score": pa.array([score if math.isfinite(score) else None for score in scores.values()], pa.float64()),
    }
    return write_table(pa.table(columns).replace_schema_metadata({b"sp_rerank": name.encode()}), len(scores))
