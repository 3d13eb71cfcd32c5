"""What a person may ask of a model beside its name: weights that are added, files that it needs. Knows no model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePath
from reprlib import repr as brief
from typing import Any, NamedTuple, TypedDict, cast

from sp_rerank.config.rules import FLAG, TEXT, Rule, or_none
from sp_rerank.errors import OptionError

WEIGHTS = ".safetensors"
"""The one format of weights that is read: it holds numbers and no code."""


class Lora(NamedTuple):
    """A low-rank adaptation of a model's weights.

    Attributes:
        file: Its file.
        weight: How strongly it counts; 1 is as it was trained.
    """

    file: str
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Lora:
        """That of "FILE" or "FILE:WEIGHT".

        Raises:
            OptionError: If the file is none that is read, or the weight is not finite.
        """
        head, colon, tail = text.rpartition(":")
        try:
            lora = cls(head, float(tail)) if colon else cls(text)
        except ValueError:
            lora = cls(text)
        if not math.isfinite(lora.weight) or not lora.file.endswith(WEIGHTS):
            raise OptionError("loras", text, f"FILE{WEIGHTS} or FILE{WEIGHTS}:WEIGHT such as style{WEIGHTS}:0.8")
        return lora


class Embedding(NamedTuple):
    """A textual inversion: a word that a model learned.

    Attributes:
        file: Its file.
        token: The word, as prompts write it; None takes the name in the file, or that of the file.
    """

    file: str
    token: str | None = None

    @classmethod
    def parse(cls, text: str) -> Embedding:
        """That of "FILE" or "FILE:TOKEN".

        Raises:
            OptionError: If the file is none that is read, or the token has spaces.
        """
        head, colon, tail = text.rpartition(":")
        found = cls(head, tail) if colon and not text.endswith(WEIGHTS) else cls(text)
        if not found.file.endswith(WEIGHTS) or (found.token is not None and found.token.split() != [found.token]):
            raise OptionError("embeddings", text, f"FILE{WEIGHTS} or FILE{WEIGHTS}:TOKEN such as toy{WEIGHTS}:<toy>")
        return found


def _texts(value: object) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    return all(map(TEXT.holds, cast("Sequence[object]", value)))


def _option(default: Any, rule: Rule, help: str) -> Any:
    return field(default=default, metadata={"rule": rule, "help": help, "group": "Model"})


_TEXTS = Rule("a list of texts", _texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointOptions:
    """What is asked of a model beside its name; each field is a keyword of `load_pipeline`.

    Raises:
        OptionError: If a value is none that can be.
    """

    base: str | None = _option(
        None,
        or_none(TEXT),
        "Of a model that is a file: folder or repository with the configuration of its kind. [default: what diffusers "
        "knows of it, if it is in the cache or can be fetched]",
    )
    variant: str | None = _option(
        None, or_none(TEXT), "Of the weights, such as fp16. [default: the plain ones, if there are any]"
    )
    loras: Sequence[str] = _option((), _TEXTS, "LoRA file, and how strongly it counts: FILE[:WEIGHT]; repeatable.")
    embeddings: Sequence[str] = _option(
        (), _TEXTS, "Textual inversion file, and the word that prompts use: FILE[:TOKEN]; repeatable."
    )
    offload: bool = _option(
        False, FLAG, "Keep models in main memory and on the accelerator only while they work: slower, less memory."
    )

    def __post_init__(self) -> None:
        for entry in fields(self):
            rule: Rule = entry.metadata["rule"]
            if not rule.holds(getattr(self, entry.name)):
                raise OptionError(entry.name, getattr(self, entry.name), rule.expected)
        for text in self.loras:
            Lora.parse(text)
        for text in self.embeddings:
            Embedding.parse(text)

    def keywords(self) -> CheckpointKeywords:
        """The fields by name, as `load_pipeline` takes them."""
        return CheckpointKeywords(
            base=self.base, variant=self.variant, loras=self.loras, embeddings=self.embeddings, offload=self.offload
        )


class CheckpointKeywords(TypedDict, total=False):
    """The fields of `CheckpointOptions` as keywords, for type checkers and editors."""

    base: str | None
    variant: str | None
    loras: Sequence[str]
    embeddings: Sequence[str]
    offload: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What a loaded model was made of beside its own repository or folder; a part of what makes a run.

    Attributes:
        base: As in `CheckpointOptions`, of a model that is a file.
        sha256: Of that file.
        variant: Of the weights that were read.
        loras: Of each its file, sha256 and weight.
        embeddings: Of each its file, sha256 and token.
        offload: Whether its models wait in main memory.
    """

    base: str | None = None
    sha256: str | None = None
    variant: str | None = None
    loras: tuple[Mapping[str, Any], ...] = ()
    embeddings: tuple[Mapping[str, Any], ...] = ()
    offload: bool = False

    def to_json(self) -> dict[str, Any]:
        """The fields that are set."""
        record = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        record |= {name: [dict(entry) for entry in record[name]] for name in ("loras", "embeddings")}
        return {name: value for name, value in record.items() if value}

    @classmethod
    def from_json(cls, value: object) -> Provenance:
        """That of a run.json.

        Raises:
            ValueError: If it is none that this version knows.
        """
        if not isinstance(value, dict):
            raise ValueError("expected a table")
        record = cast("dict[str, Any]", value)
        unknown = sorted(map(str, record.keys() - _KINDS.keys() - _ADDED.keys()))
        if unknown:
            raise ValueError(f"unknown key {brief(unknown[0])}")
        for name, kind in _KINDS.items():
            if name in record and type(record[name]) is not kind:
                raise ValueError(f"{name}: expected {kind.__name__}, got {brief(record[name])}")
        values: dict[str, Any] = {**record, **{name: tuple(_entries(name, record.get(name, []))) for name in _ADDED}}
        return cls(**values)

    def differences(self, other: Provenance) -> list[str]:
        """The names of the fields that decide pixels in which another differs; where its models wait decides none."""
        other = replace(other, offload=self.offload)
        return [entry.name for entry in fields(self) if getattr(self, entry.name) != getattr(other, entry.name)]

    def options(self) -> CheckpointOptions:
        """What has to be asked for to load the model again."""
        loras = [f"{entry['file']}:{entry['weight']}" for entry in self.loras]
        words = [f"{entry['file']}:{entry['token']}" for entry in self.embeddings]
        return CheckpointOptions(
            base=self.base, variant=self.variant, loras=loras, embeddings=words, offload=self.offload
        )

    def changed_files(self, other: Provenance) -> list[str]:
        """The names of added files, and "the model", whose content is another in a model that was loaded again."""
        pairs = [*zip(self.loras, other.loras, strict=False), *zip(self.embeddings, other.embeddings, strict=False)]
        changed = [PurePath(ours["file"]).name for ours, theirs in pairs if ours["sha256"] != theirs["sha256"]]
        return [*changed, *(["the model"] if self.sha256 != other.sha256 else [])]


_KINDS = {"base": str, "sha256": str, "variant": str, "offload": bool}
_ADDED = {
    "loras": {"file": str, "sha256": str, "weight": float},
    "embeddings": {"file": str, "sha256": str, "token": str},
}


def _entries(name: str, value: Any) -> list[Mapping[str, Any]]:
    wanted = _ADDED[name]
    entries = cast("list[Any]", value if isinstance(value, list) else [value])
    for entry in entries:
        record = cast("dict[str, object]", entry) if isinstance(entry, dict) else {}
        if {key: type(item) for key, item in record.items()} != wanted:
            raise ValueError(
                f"{name}: expected a list of tables with {', '.join(wanted)}, got {brief(cast('object', entry))}"
            )
    return entries
