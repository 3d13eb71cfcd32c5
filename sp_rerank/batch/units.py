"""A unit: one prompt with all its candidates as one parquet object, a row a candidate. Equal units are equal bytes.

The object's presence is the commit. No time, host or process gets into it: whoever makes a unit again makes the same
bytes on the same kind of machine. The images stand behind the scores, in row groups of at most 16, so that a query over
scores reads no image and one image costs little.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Literal

from sp_rerank.batch.arrow import arrow
from sp_rerank.batch.prompts import PromptRow
from sp_rerank.config import RunConfig
from sp_rerank.errors import StorageError
from sp_rerank.run.png import to_png
from sp_rerank.run.records import Row
from sp_rerank.run.summary import RunSummary
from sp_rerank.types import Candidate

SCHEMA = 1
"""Of a batch's objects together; it rises when a reader of the old one would misread the new one."""

UNITS, FAILED = "units", "failed"

ImageFormat = Literal["png", "webp", "jpeg"]
Status = Literal["ok", "unusable"]

IMAGES_OF_A_GROUP = 16
"""Pictures of a row group: reading one picture reads its group."""

OWN_COLUMNS = frozenset((
    "prompt_id", "prompt", "index", "seed", "status", "rank", "score", "nfe", "batch_size", "stages", "sha256",
    "hardware", "image",
))  # fmt: skip
"""Columns of a unit that are no other scorer's."""

_SAFE = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")


def key_of(row_id: str, kind: str = UNITS, suffix: str = "parquet") -> str:
    """The key of a row's object; it follows from the id alone, is a path on every system, and differs for every id."""
    digest = sha256(row_id.encode()).hexdigest()
    return f"{kind}/{digest[:2]}/{name_of(row_id)}.{suffix}"


def name_of(row_id: str) -> str:
    """An id as a file's name: itself where it is plain and lower case, else "id." and its hash."""
    return row_id if _SAFE.fullmatch(row_id) else f"id.{sha256(row_id.encode()).hexdigest()[:32]}"


@dataclass(frozen=True, slots=True)
class Unit:
    """One prompt, made.

    Attributes:
        row: Of the list of prompts.
        status: "unusable" where every candidate was flagged, or too many were not finite; the rows are kept.
        config: What made it.
        rows: All candidates, by index.
        scores: What ranks each of them, by index; NaN where it is not usable.
        summary: What came out.
        images: Image files of the candidates that are kept, by index.
        hardware: What computed it, such as "NVIDIA H100 80GB HBM3", or "cpu".
        together: Ids of the prompts whose images were made in the same calls, in their order; empty where it was made
            by itself.
    """

    row: PromptRow
    status: Status
    config: RunConfig
    rows: Sequence[Row]
    scores: Mapping[int, float]
    summary: RunSummary
    images: Mapping[int, bytes]
    hardware: str
    together: tuple[str, ...] = ()


def encode(unit: Unit) -> bytes:
    """The unit as a parquet file."""
    pa, _ = arrow()
    schema = schema_of(unit.config.scorers[1:])
    ranks = {index: rank for rank, index in enumerate(unit.summary.best, 1)}
    rows = [_record(unit, row, ranks.get(row.index)) for row in unit.rows]
    record = {
        "schema": SCHEMA,
        "row": asdict(unit.row),
        "status": unit.status,
        "config": unit.config.to_json(),
        "summary": asdict(unit.summary),
        **({"together": unit.together} if unit.together else {}),
    }
    text = json.dumps(record, sort_keys=True, allow_nan=False).encode()
    table = pa.Table.from_pylist(rows, schema.with_metadata({**schema.metadata, b"sp_rerank": text}))
    return write_table(table, IMAGES_OF_A_GROUP if len(unit.images) > IMAGES_OF_A_GROUP else len(rows))


def write_table(table: Any, group: int) -> bytes:
    """A table as a parquet file: scores compressed, images as they are."""
    _, parquet = arrow()
    compression = {name: "zstd" for name in table.schema.names if name != "image"}
    compression |= {"image.bytes": "none", "image.path": "none"} if "image" in table.schema.names else {}
    dictionary = [name for name in table.schema.names if name not in ("image", "sha256", "score")]
    file = io.BytesIO()
    parquet.write_table(
        table, file, row_group_size=max(1, group), compression=compression, use_dictionary=dictionary,
        write_statistics=False,
    )  # fmt: skip
    return file.getvalue()


def schema_of(others: Sequence[str]) -> Any:
    """The columns of a unit.

    Args:
        others: Full names of the scorers beside the one that ranks, a column each.
    """
    pa, _ = arrow()
    fields = [
        ("prompt_id", pa.string()), ("prompt", pa.string()), ("index", pa.int32()), ("seed", pa.int64()),
        ("status", pa.string()), ("rank", pa.int32()), ("score", pa.float64()),
        *((name, pa.float64()) for name in others),
        ("nfe", pa.int32()), ("batch_size", pa.int32()), ("stages", pa.string()), ("sha256", pa.string()),
        ("hardware", pa.string()), ("image", image_type()),
    ]  # fmt: skip
    return with_features(pa.schema(fields))


def image_type() -> Any:
    """The type of an image column, as `datasets` has it."""
    pa, _ = arrow()
    return pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def with_features(schema: Any) -> Any:
    """A schema that `datasets` reads with its images as images."""
    kinds = {
        field.name: {"_type": "Image"}
        if field.type == image_type()
        else {"dtype": _dtype(field.type), "_type": "Value"}
        for field in schema
    }
    return schema.with_metadata({b"huggingface": json.dumps({"info": {"features": kinds}}).encode()})


def _dtype(kind: Any) -> str:
    return {"double": "float64"}.get(str(kind), str(kind))


def _record(unit: Unit, row: Row, rank: int | None) -> dict[str, Any]:
    score, others = unit.scores[row.index], unit.config.scorers[1:]
    data = unit.images.get(row.index)
    return {
        "prompt_id": unit.row.id,
        "prompt": unit.row.prompt,
        "index": row.index,
        "seed": row.seed,
        "status": row.status,
        "rank": rank,
        "score": score if math.isfinite(score) else None,
        **{name: row.scores.get(name) for name in others},
        "nfe": row.nfe,
        "batch_size": row.batch_size,
        "stages": json.dumps([stage.to_record() for stage in row.stages]) if row.stages else None,
        "sha256": row.sha256,
        "hardware": unit.hardware,
        "image": None if data is None else {"bytes": data, "path": None},
    }


@dataclass(frozen=True, slots=True)
class StoredUnit:
    """A unit as it is read again.

    Attributes:
        row: Of the list of prompts.
        status: As in `Unit`.
        config: What made it.
        best: Indices of the kept candidates, the best first.
        candidates: The columns of every candidate, by index; `image` is its file or None, a score None where there is
            none.
        together: As in `Unit`.
    """

    row: PromptRow
    status: Status
    config: RunConfig
    best: tuple[int, ...]
    candidates: Mapping[int, Mapping[str, Any]]
    together: tuple[str, ...] = ()

    @property
    def kept(self) -> list[Mapping[str, Any]]:
        """The candidates whose images are here, the best first, then by index."""
        order = {index: rank for rank, index in enumerate(self.best)}
        held = [entry for entry in self.candidates.values() if entry["image"] is not None]
        return sorted(held, key=lambda entry: (order.get(entry["index"], len(order)), entry["index"]))


def decode(data: bytes, name: str, columns: Sequence[str] | None = None) -> StoredUnit:
    """The unit in a parquet file; with `columns` only these of each candidate.

    Raises:
        StorageError: If it is none.
    """
    pa, parquet = arrow()
    try:
        table = parquet.read_table(io.BytesIO(data), columns=columns)
        record = json.loads(table.schema.metadata[b"sp_rerank"])
        if record["schema"] > SCHEMA:
            raise StorageError(f"{name} was made by a newer sp-rerank: schema {record['schema']}; update sp-rerank")
        row, config = PromptRow(**record["row"]), RunConfig.from_json(record["config"])
        best = tuple(record["summary"]["best"])
        candidates = {entry["index"]: _flat(entry) for entry in table.to_pylist()}
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{name} is no unit of a batch: {error}; delete it to make it again") from error
    return StoredUnit(row, record["status"], config, best, candidates, tuple(record.get("together", ())))


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    image = entry.get("image")
    return {**entry, "image": None if image is None else image["bytes"]}


def encode_image(candidate: Candidate, config: RunConfig, scores: Mapping[str, float | None], form: str) -> bytes:
    """A candidate as an image file: PNG with its metadata, lossless WebP, or JPEG of quality 95."""
    if form == "png":
        return to_png(candidate, config, {"scores": dict(scores)})
    file = io.BytesIO()
    how: dict[str, Any] = {"lossless": True, "method": 0} if form == "webp" else {"quality": 95, "subsampling": 0}
    candidate.image.save(file, form.upper(), **how)
    return file.getvalue()
