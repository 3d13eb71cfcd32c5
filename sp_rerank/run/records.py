"""The text of a run folder: run.json, a line of candidates.jsonl a candidate, a line of stages.jsonl a stage.

Knows the schema and what makes a text valid. Knows nothing of folders, locks or images.

Schema 2 calls `nfe` (number of function evaluations) what schema 1 called `unet_evaluations`, and `confidence` what it
called `until`; both are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from sp_rerank.config import RunConfig, Stage
from sp_rerank.errors import OptionError, StorageError, UsageError
from sp_rerank.run.json_text import Record, are_scores, encoded, is_score, is_sha256, is_whole, loads
from sp_rerank.stats.ranking import finite
from sp_rerank.storage import atomic

if TYPE_CHECKING:
    from sp_rerank.run.state import Finished

SCHEMA = 2
"""Of the files of a run folder together; it rises when a reader of the old one would misread the new one."""

Status = Literal["ok", "flagged", "nonfinite", "dropped"]


def _from_schema_1(config: Record) -> Record:
    stop = config.get("stop")
    if isinstance(stop, dict) and "until" in stop:
        rules = cast("Record", stop)
        config = {**config, "stop": {"confidence" if name == "until" else name: rules[name] for name in rules}}
    return config


MIGRATIONS: dict[int, Callable[[Record], Record]] = {1: _from_schema_1}
"""From a schema's number to the function that makes its run.json one of the next schema."""


@dataclass(frozen=True, slots=True)
class StageScore:
    """What a search saw of a candidate before it was finished.

    Attributes:
        stage: Where in the search.
        score: By the scorer that ranks; None stands for one that is not finite, and for a flagged image.
        nfe: Evaluations of the denoiser for this candidate at this stage.
        flagged: Whether the safety checker replaced the image.
        also: In a recording, the scores of the other scorers by name; None as in `score`.

    Raises:
        ValueError: If a field has another type or range than that.
    """

    stage: Stage
    score: float | None
    nfe: int
    flagged: bool = False
    also: dict[str, float | None] = field(default_factory=dict[str, "float | None"])

    def __post_init__(self) -> None:
        if not is_score(self.score):
            raise ValueError(f"a stage's score should be a finite number or null, not {brief(self.score)}")
        if not are_scores(self.also):
            raise ValueError(f"other scores should be finite numbers or null by name, not {brief(self.also)}")
        if not is_whole(self.nfe):
            raise ValueError(f"nfe should be a whole number from 0 on, not {brief(self.nfe)}")

    def to_record(self) -> Record:
        """The stage for JSON; `also` where it holds something."""
        record: Record = {
            "name": self.stage.label, "score": self.score, "nfe": self.nfe, "flagged": self.flagged, "also": self.also,
        }  # fmt: skip
        if not self.also:
            del record["also"]
        return record

    @classmethod
    def from_record(cls, record: object) -> StageScore:
        """The stage of a JSON object; keys that this version does not know are ignored.

        Raises:
            ValueError: If it is none.
        """
        if not isinstance(record, dict):
            raise ValueError(f"a stage should be an object, not {brief(record)}")
        found = _with_nfe(cast("Record", record))
        for name in ("name", "score", "nfe"):
            if name not in found:
                raise ValueError(f"a stage should have a {name}")
        also = found.get("also", {})
        return cls(Stage.parse(found["name"]), found["score"], found["nfe"], found.get("flagged") is True, also)


def _from(lowest: float) -> str:
    return f" from {lowest} on" if math.isfinite(lowest) else ""


def _with_nfe(record: Record) -> Record:
    """A record of either schema as one of schema 2."""
    return (
        record
        if "nfe" in record
        else {**record, **({"nfe": record["unet_evaluations"]} if "unet_evaluations" in record else {})}
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One committed candidate.

    Attributes:
        index: 0..n-1, its place in the run.
        seed: Seed of its initial noise.
        status: "flagged" if the safety checker replaced it, "nonfinite" if its pixels or a score were not finite,
            "dropped" if a search let it fall before its last step: its image is what the search saw of it last.
        scores: by the scorer's name, higher is better; None stands for a score that is not finite, for JSON has none.
        sha256: Of its image file (of its pixels in memory), 64 lower-case hexadecimal digits.
        nfe: Evaluations of the denoiser for this candidate, those of its stages included.
        batch_size: Of the batch that it was made in; the same batch made again is the same bit for bit.
        stages: what a search saw of it on the way, in order.

    Raises:
        ValueError: if a field has another type or range than that.
    """

    index: int
    seed: int
    status: Status
    scores: dict[str, float | None]
    sha256: str
    nfe: int
    batch_size: int
    stages: tuple[StageScore, ...] = ()

    def __post_init__(self) -> None:
        for name, lowest in (("index", 0), ("seed", -math.inf), ("nfe", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < lowest:
                raise ValueError(f"{name} should be a whole number{_from(lowest)}, not {brief(value)}")
        if self.status not in get_args(Status):
            raise ValueError(f"status should be one of {', '.join(get_args(Status))}, not {brief(self.status)}")
        if not are_scores(self.scores):
            raise ValueError(f"scores should be finite numbers or null by name, not {brief(self.scores)}")
        if not is_sha256(self.sha256):
            raise ValueError(f"sha256 should be 64 hexadecimal digits, not {brief(self.sha256)}")

    @classmethod
    def of(cls, content: bytes, made: Finished, stages: Mapping[int, tuple[StageScore, ...]]) -> Row:
        """The row of a finished candidate.

        Args:
            content: Its image file, or its pixels where there is no file.
            made: The candidate.
            stages: What a search saw of each candidate before, by index.
        """
        candidate = made.candidate
        return cls(
            index=candidate.index,
            seed=cast("int", candidate.seed),
            status=made.status,
            scores={name: finite(float(score)) for name, score in made.scores.items()},
            sha256=atomic.sha256_of(content),
            nfe=made.nfe,
            batch_size=made.batch_size,
            stages=stages.get(candidate.index, ()),
        )

    @property
    def file(self) -> str:
        """Path of the image in the run folder, for example "images/00057.png"; only the index has a say in it."""
        return f"images/{self.index:05d}.png"

    @property
    def own_nfe(self) -> int:
        """Spent on the trajectory of its image, drafts left out."""
        return self.nfe - sum(stage.nfe for stage in self.stages if stage.stage.kind == "draft")

    def to_line(self) -> bytes:
        """The row as a line of candidates.jsonl, with its newline; equal rows give equal bytes."""
        record = {name: getattr(self, name) for name in _ROW_KEYS}
        record |= {"stages": [stage.to_record() for stage in self.stages], "file": self.file}
        if not self.stages:
            del record["stages"]
        return json.dumps(record, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Row:
        """The row of a line; keys that this version does not know are ignored.

        Raises:
            ValueError: if the line is no JSON object of a row, or names a file other than its index's own.
        """
        record = _with_nfe(loads(line))
        stages = record.pop("stages", [])
        if not isinstance(stages, list):
            raise ValueError(f"stages should be a list, not {brief(stages)}")
        absent = [name for name in _ROW_KEYS if name not in record]
        if absent:
            raise ValueError(f"{', '.join(absent)} not given")
        row = cls(
            **{name: record[name] for name in _ROW_KEYS},
            stages=tuple(map(StageScore.from_record, cast("list[Any]", stages))),
        )
        if record.get("file") != row.file:
            raise ValueError(f"file should be {row.file!r}, not {brief(record.get('file'))}")
        return row


_ROW_KEYS = tuple(entry.name for entry in fields(Row) if entry.name != "stages")


@dataclass(frozen=True, slots=True)
class StageLine:
    """A line of stages.jsonl: a candidate at a stage of a search that is not over yet.

    Attributes:
        index: of the candidate.
        stage: what was seen.
        sha256: of the image file of it.
    """

    index: int
    stage: StageScore
    sha256: str

    def to_line(self) -> bytes:
        """The line, with its newline."""
        record = {"index": self.index, **self.stage.to_record(), "sha256": self.sha256}
        return json.dumps(record, allow_nan=False).encode() + b"\n"


def parse_stages(text: bytes, name: str) -> tuple[list[StageLine], int]:
    """The committed lines of stages.jsonl in their order, and their length in bytes; errors as in `parse_rows`."""
    committed = text.rfind(b"\n") + 1
    lines: list[StageLine] = []
    for number, line in enumerate(text[:committed].split(b"\n")[:-1], start=1):
        try:
            record = loads(line)
            stage = StageScore.from_record(record)
            if not is_whole(record.get("index")):
                raise ValueError(f"index should be a whole number from 0 on, not {brief(record.get('index'))}")
        except ValueError as error:
            raise StorageError(f"{name}: line {number} is damaged: {error}; delete the file to search anew") from error
        lines.append(StageLine(record["index"], stage, str(record.get("sha256"))))
    return lines, committed


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


def encode_config(config: RunConfig) -> bytes:
    """The text of run.json: the configuration and the schema, keys sorted; equal configurations give equal bytes.

    Raises:
        OptionError: If a further argument of the pipeline is what JSON has not, such as a picture or an infinity.
    """
    for name, value in config.pipe_kwargs.items():
        try:
            encoded({name: value})
        except (TypeError, ValueError) as error:
            raise OptionError(
                "pipe_kwargs",
                f"{name}={value!r:.80}",
                "values that JSON has (numbers, text, lists), for run.json keeps them; a run in memory, without a "
                "folder, takes any",
            ) from error
    return encoded({**config.to_json(), "schema": SCHEMA})


def parse_config(text: bytes, name: str) -> tuple[RunConfig, int]:
    """The configuration in a run.json, migrated to this schema, and the schema that it was written in.

    Raises:
        UsageError: If it was made by a newer version, has no schema, or a key is missing or of another type.
        StorageError: If it is not JSON.
    """
    try:
        record = loads(text)
    except ValueError as error:
        raise StorageError(f"{name} is damaged: {error}; restore it from a copy") from error
    schema = record.pop("schema", None)
    if type(schema) is not int or schema < 1:
        raise UsageError(f"{name} is not of sp-rerank: its schema is {brief(schema)}, a number from 1 on was expected")
    if schema > SCHEMA:
        raise UsageError(
            f"{name} was made by a newer sp-rerank: schema {brief(schema)}, this one reads {SCHEMA}; update sp-rerank"
        )
    for older in range(schema, SCHEMA):
        record = MIGRATIONS[older](record)
    try:
        return RunConfig.from_json(record), schema
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
