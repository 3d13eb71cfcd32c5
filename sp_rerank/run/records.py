"""The text of a run folder: run.json, one line of candidates.jsonl per candidate, one of stages.jsonl per stage.

Knows the schema and what makes a text valid. Knows nothing of folders, locks or images.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from reprlib import repr as brief
from typing import Any, Literal, NoReturn, get_args

from sp_rerank.errors import StorageError, UsageError

SCHEMA = 1
"""Of run.json and candidates.jsonl together; it rises when a reader of the old one would misread the new one."""

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From a schema's number to the function that makes its run.json one of the next schema."""

DRAFT = "draft"
"""How the name of a stage begins that made an image of its own."""

Status = Literal["ok", "flagged", "nonfinite", "dropped"]


@dataclass(frozen=True, slots=True)
class Stage:
    """What a search saw of a candidate before it was finished.

    Attributes:
        name: such as "draft, 8 steps" or "preview, 6 of 16 steps".
        score: by the scorer that selects; None stands for one that is not finite, and for a flagged image.
        unet_evaluations: spent on this candidate at this stage.
        flagged: whether the safety checker replaced what was to be seen.
        also: of a recording, by the name of each other scorer what it says; None as in `score`.

    Raises:
        ValueError: if a field has another type or range than that.
    """

    name: str
    score: float | None
    unet_evaluations: int
    flagged: bool = False
    also: dict[str, float | None] = field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a stage's name should be text, not {brief(self.name)}")
        if not _is_score(self.score):
            raise ValueError(f"a stage's score should be a finite number or null, not {brief(self.score)}")
        if not isinstance(self.also, dict) or not all(map(_is_score, self.also.values())):
            raise ValueError(f"other scores should be finite numbers or null by name, not {brief(self.also)}")
        if type(self.unet_evaluations) is not int or self.unet_evaluations < 0:
            raise ValueError(f"unet_evaluations should be a whole number from 0 on, not {brief(self.unet_evaluations)}")

    @property
    def is_draft(self) -> bool:
        """Whether it began from the noise anew; a preview is a look at a trajectory that goes on."""
        return self.name.startswith(DRAFT)

    def to_record(self) -> dict[str, Any]:
        """The stage for JSON; `also` where it holds something."""
        record = asdict(self)
        if not self.also:
            del record["also"]
        return record


@dataclass(frozen=True, slots=True)
class Row:
    """One committed candidate.

    Attributes:
        index: 0..n-1, its place in the run.
        seed: of its initial noise.
        status: "flagged" if the safety checker replaced it, "nonfinite" if its pixels or a score were not finite,
            "dropped" if a search let it fall before its last step: its image is what the search saw of it last.
        scores: by the scorer's name, higher is better; None stands for a score that is not finite, for JSON has none.
        sha256: of its image file, 64 lower-case hexadecimal digits.
        unet_evaluations: spent on this candidate, those of its stages included.
        batch_size: of the batch that it was made in; the same batch made again is the same bit for bit.
        stages: what a search saw of it on the way, in order.

    Raises:
        ValueError: if a field has another type or range than that.
    """

    index: int
    seed: int
    status: Status
    scores: dict[str, float | None]
    sha256: str
    unet_evaluations: int
    batch_size: int
    stages: tuple[Stage, ...] = ()

    def __post_init__(self):
        for name, lowest in (("index", 0), ("seed", -math.inf), ("unet_evaluations", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < lowest:
                raise ValueError(f"{name} should be a whole number{_from(lowest)}, not {brief(value)}")
        if self.status not in get_args(Status):
            raise ValueError(f"status should be one of {', '.join(get_args(Status))}, not {brief(self.status)}")
        if not isinstance(self.scores, dict) or not all(_is_score(value) for value in self.scores.values()):
            raise ValueError(f"scores should be finite numbers or null by name, not {brief(self.scores)}")
        if not isinstance(self.sha256, str) or len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise ValueError(f"sha256 should be 64 hexadecimal digits, not {brief(self.sha256)}")

    @classmethod
    def of(cls, png: bytes, *, scores: Mapping[str, float], **fields: Any) -> Row:
        """The row of an image file: its sha256, None for each score that is not finite; `fields` are the others."""
        finite = {name: float(score) if math.isfinite(score) else None for name, score in scores.items()}
        return cls(scores=finite, sha256=hashlib.sha256(png).hexdigest(), **fields)

    @property
    def file(self) -> str:
        """Path of the image in the run folder, for example "images/00057.png"; only the index has a say in it."""
        return f"images/{self.index:05d}.png"

    @property
    def own_evaluations(self) -> int:
        """Spent on the trajectory of its image, drafts left out."""
        return self.unet_evaluations - sum(stage.unet_evaluations for stage in self.stages if stage.is_draft)

    def to_line(self) -> bytes:
        """The row as a line of candidates.jsonl, with its newline; equal rows give equal bytes."""
        record = {**asdict(self), "stages": [stage.to_record() for stage in self.stages], "file": self.file}
        if not self.stages:
            del record["stages"]
        return json.dumps(record, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Row:
        """The row of a line; keys that this version does not know are ignored.

        Raises:
            ValueError: if the line is no JSON object of a row, or names a file other than its index's own.
        """
        record = _loads(line)
        stages = _stages(record.pop("stages", []))
        absent = [f.name for f in fields(cls) if f.name not in record and f.name != "stages"]
        if absent:
            raise ValueError(f"{', '.join(absent)} not given")
        row = cls(**{f.name: record[f.name] for f in fields(cls) if f.name != "stages"}, stages=stages)
        if record.get("file") != row.file:
            raise ValueError(f"file should be {row.file!r}, not {brief(record.get('file'))}")
        return row


def _stages(records: Any) -> tuple[Stage, ...]:
    names = ["name", "score", "unet_evaluations"]
    if not isinstance(records, list) or not all(isinstance(one, dict) and one.keys() >= set(names) for one in records):
        raise ValueError(f"stages should be a list of {', '.join(names)}, not {brief(records)}")
    return tuple(
        Stage(**{name: one[name] for name in names}, flagged=one.get("flagged") is True, also=one.get("also", {}))
        for one in records
    )


@dataclass(frozen=True, slots=True)
class Seen:
    """A line of stages.jsonl: a candidate at a stage of a search that is not over yet.

    Attributes:
        index: of the candidate.
        stage: what was seen.
        sha256: of the image file of it.
    """

    index: int
    stage: Stage
    sha256: str

    def to_line(self) -> bytes:
        """The line, with its newline."""
        record = {"index": self.index, **self.stage.to_record(), "sha256": self.sha256}
        return json.dumps(record, allow_nan=False).encode() + b"\n"


def parse_seen(text: bytes, name: str) -> tuple[list[Seen], int]:
    """The committed lines of stages.jsonl in their order, and their length in bytes; errors as in `parse_rows`."""
    committed = text.rfind(b"\n") + 1
    seen = []
    for number, line in enumerate(text[:committed].split(b"\n")[:-1], start=1):
        try:
            record = _loads(line)
            (stage,) = _stages([record])
            if type(record.get("index")) is not int or record["index"] < 0:
                raise ValueError(f"index should be a whole number from 0 on, not {brief(record.get('index'))}")
        except ValueError as error:
            raise StorageError(f"{name}: line {number} is damaged: {error}; delete the file to search anew") from error
        seen.append(Seen(record["index"], stage, str(record.get("sha256"))))
    return seen, committed


def parse_rows(text: bytes, name: str) -> tuple[dict[int, Row], int]:
    """The committed rows of candidates.jsonl, in its order, by index.

    A line is committed with its newline: what stands behind the last one is what a crash left, and is dropped.

    Args:
        text: the whole file.
        name: of the file, for the messages.

    Returns:
        The rows, and the length in bytes of the committed part.

    Raises:
        StorageError: naming the first damaged line.
    """
    committed = text.rfind(b"\n") + 1
    rows: dict[int, Row] = {}
    for number, line in enumerate(text[:committed].split(b"\n")[:-1], start=1):
        try:
            row = Row.from_line(line)
            if row.index in rows:
                raise ValueError(f"candidate {row.index} is there twice")
        except ValueError as error:
            raise StorageError(f"{name}: line {number} is damaged: {error}; restore it from a copy") from error
        rows[row.index] = row
    return rows, committed


def encode_config(config: Mapping[str, Any]) -> bytes:
    """The text of run.json: the configuration and the schema, keys sorted; equal configurations give equal bytes.

    Raises:
        ValueError: if the configuration has no "n" from 1 on, has a "schema", or holds what JSON has not.
    """
    if "schema" in config:
        raise ValueError('"schema" is not for the configuration to set')
    _check_n(config)
    text = json.dumps({**config, "schema": SCHEMA}, sort_keys=True, indent=2, allow_nan=False)
    return text.encode() + b"\n"


def parse_config(text: bytes, name: str) -> dict[str, Any]:
    """The configuration in a run.json, migrated to this schema, without the schema's number.

    Raises:
        UsageError: if it was made by a newer version, or has no schema.
        StorageError: if it is damaged.
    """
    try:
        config = _loads(text)
    except ValueError as error:
        raise StorageError(f"{name} is damaged: {error}; restore it from a copy") from error
    config = _migrated(config, name)
    try:
        _check_n(config)
    except ValueError as error:
        raise StorageError(f"{name} is damaged: {error}; restore it from a copy") from error
    return config


def _migrated(config: dict[str, Any], name: str) -> dict[str, Any]:
    schema = config.pop("schema", None)
    if type(schema) is not int or schema < 1:
        raise UsageError(f"{name} is not of sp-rerank: its schema is {brief(schema)}, a number from 1 on was expected")
    if schema > SCHEMA:
        raise UsageError(
            f"{name} was made by a newer sp-rerank: schema {schema}, this one reads {SCHEMA}; update sp-rerank"
        )
    for older in range(schema, SCHEMA):
        config = MIGRATIONS[older](config)
    return config


def _check_n(config: Mapping[str, Any]) -> None:
    n = config.get("n")
    if type(n) is not int or n < 1:
        raise ValueError(f'"n", the number of candidates, should be a whole number from 1 on, not {brief(n)}')


def _loads(text: bytes) -> dict[str, Any]:
    """A JSON object; every way of not being one is a ValueError."""
    try:
        value = json.loads(text.decode(), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("a JSON object was expected")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _is_score(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) <= sys.float_info.max)


def _from(lowest: float) -> str:
    return f" from {lowest} on" if math.isfinite(lowest) else ""
