"""batch.json: what every unit of a batch has in common, and what tells one batch from another. Knows no store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from sp_rerank.batch.units import SCHEMA, ImageFormat
from sp_rerank.config import GenerationOptions, RunConfig
from sp_rerank.errors import StorageError, UsageError

Keep = Literal["top", "all", "none", "run"]


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """What every unit of a batch has in common, resolved once by the first worker and written down.

    Attributes:
        config: Configuration of a run without its prompt; what decides the pixels, device and versions too.
        top_k: How many of the best are kept.
        diverse: Whether they are to differ.
        strict: Whether a prompt that is too long fails.
        keep: Whose images are kept: those of the best, of all usable candidates, of none, or whole run folders.
        image_format: Of the images.
        threads: Threads of a CPU, which decide the last bit; None on an accelerator.
        pack: Number of prompts that share calls of the pipeline.
    """

    config: RunConfig
    top_k: int
    diverse: bool
    strict: bool
    keep: Keep
    image_format: ImageFormat
    threads: int | None
    pack: int = 1

    def to_bytes(self) -> bytes:
        """The text of batch.json."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "config"}
        record = {"schema": SCHEMA, "config": self.config.to_json(), **own}
        return json.dumps(record, sort_keys=True, indent=2, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> BatchConfig:
        """What a batch.json says.

        Raises:
            UsageError: If it is of a newer version.
            StorageError: If it is damaged.
        """
        try:
            record = json.loads(data)
            schema = record.pop("schema")
            if schema > SCHEMA:
                raise UsageError(f"{name} was made by a newer sp-rerank: schema {schema}; update sp-rerank")
            return cls(**{**record, "config": RunConfig.from_json(record["config"])})
        except UsageError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{name} is damaged: {error}; restore it from a copy") from error

    def differences(self, other: BatchConfig) -> list[str]:
        """A line for each thing in which another one differs."""
        own = [entry.name for entry in fields(self) if entry.name != "config"]
        lines = [
            f"{name} is {getattr(self, name)}, not {getattr(other, name)}"
            for name in own
            if getattr(self, name) != getattr(other, name)
        ]
        return [*self.config.differences(other.config), *lines]

    def matches(self, options: GenerationOptions) -> list[str]:
        """A line for each option that was set otherwise when the batch was begun, as far as no model is asked."""
        config = self.config
        held: dict[str, Any] = {
            "n": config.n, "seed": config.seed, "steps": config.steps, "guidance_scale": config.guidance_scale,
            "negative_prompt": config.negative_prompt, "height": config.height, "width": config.width,
            "top_k": self.top_k, "diverse": self.diverse, "strict": self.strict,
        }  # fmt: skip
        asked = {name: getattr(options, name) for name in held} | {"top_k": options.kept}
        return [
            f"{name} is {held[name]}, not {value}"
            for name, value in asked.items()
            if value is not None and value != held[name]
        ]


def refuse_other(place: str, different: Sequence[str]) -> None:
    """Refuse a batch that was begun otherwise.

    Raises:
        UsageError: Naming up to three differences, if there are any.
    """
    if different:
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise UsageError(f"{place} holds another batch: {'; '.join(different[:3])}{more}; choose another folder")


def without_prompt(config: RunConfig) -> RunConfig:
    """A configuration as all units share it."""
    return replace(config, prompt="", truncated=())
