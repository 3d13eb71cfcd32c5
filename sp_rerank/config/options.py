"""The one table of options: flags and help texts of the command line, keywords of `generate`.

Adding an option is a field of `GenerationOptions` and its twin in `GenerationKeywords`. Knows ranges. Knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict

from sp_rerank.config.rules import (
    CONFIDENCE,
    COUNT,
    ETA,
    FLAG,
    GUIDANCE,
    MAPPING,
    MAX_SEED,
    SEED,
    SIDE,
    STEPS,
    TEXT,
    Rule,
    number,
    or_none,
    whole,
)  # fmt: skip
from sp_rerank.config.search_plan import EXHAUSTIVE, SEARCHES, StopRules
from sp_rerank.errors import OptionError


def _option(default: Any, rule: Rule, help: str, group: str = "Run", *, to_pipeline: bool = False) -> Any:
    """A field of `GenerationOptions`.

    Args:
        default: None takes what suits the model.
        rule: What a value must be.
        help: The help text.
        group: Heading in the command line's help.
        to_pipeline: Hand a value that is set to the pipeline's call, under the option's name.
    """
    return field(default=default, metadata={"rule": rule, "help": help, "group": group, "to_pipeline": to_pipeline})


_SEARCH = Rule(f"{', '.join(SEARCHES)}, or a schedule file", lambda v: isinstance(v, str | Path))


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """What a person may ask of `generate` beside prompt, pipeline and scorers. None takes what suits the model.

    Each field is a keyword of `sp_rerank.generate` and an option of `sp-rerank generate`; the help text is the field's
    own. `GenerationKeywords` repeats the names for type checkers.

    Raises:
        OptionError: If a value is out of its range, or two of them contradict each other.
    """

    n: int = _option(100, COUNT, "Number of candidates to make.")
    more: int | None = _option(
        None, or_none(COUNT), "Number of candidates to add to a finished run; -n is then the run's own."
    )
    top_k: int | None = _option(None, or_none(COUNT), "Number of the best candidates to keep. [default: 4, at most n]")
    diverse: bool = _option(False, FLAG, "Keep good candidates that are not near-copies of each other.")
    seed: int = _option(0, SEED, "Seed of the first candidate; candidate i has seed + i.")
    strict: bool = _option(False, FLAG, "Refuse a prompt that is too long to be read whole.")
    steps: int | None = _option(None, or_none(STEPS), "Number of scheduler steps. [default: the model's]", "Image")
    guidance_scale: float | None = _option(
        None, or_none(GUIDANCE), "Scale of classifier-free guidance. [default: the model's]", "Image"
    )
    negative_prompt: str | None = _option(None, or_none(TEXT), "What the image should not show.", "Image")
    height: int | None = _option(None, or_none(SIDE), "Height in pixels. [default: the model's]", "Image")
    width: int | None = _option(None, or_none(SIDE), "Width in pixels. [default: the model's]", "Image")
    batch_size: int | None = _option(
        None, or_none(COUNT), "Number of images made at once. [default: what suits model and device]", "Image"
    )
    eta: float | None = _option(
        None, or_none(ETA), "Share of new noise in each step of DDIM, 0 to 1. [default: 0]", "Image", to_pipeline=True
    )
    pipe_kwargs: Mapping[str, Any] | None = _option(
        None, or_none(MAPPING), "Another argument of the pipeline, such as true_cfg_scale=4; repeatable.", "Image"
    )
    search: str | Path = _option(
        EXHAUSTIVE,
        _SEARCH,
        "How the steps are spent: exhaustive, fast, steering, or a schedule file made by plan.",
        "Search",
    )
    record: bool = _option(
        False, FLAG, "Score every candidate at every draft and preview too, for plan to choose from.", "Search"
    )
    confidence: float | None = _option(
        None, or_none(CONFIDENCE), "End when the best is the best of all with this probability.", "Search"
    )
    max_evaluations: int | None = _option(
        None, or_none(whole(1, MAX_SEED)), "End before the denoiser is evaluated more often than this.", "Search"
    )
    max_seconds: float | None = _option(
        None, or_none(number(0, above=True)), "End with the batch in which this many seconds are over.", "Search"
    )

    def __post_init__(self) -> None:
        for entry in fields(self):
            rule: Rule = entry.metadata["rule"]
            if not rule.holds(getattr(self, entry.name)):
                raise OptionError(entry.name, getattr(self, entry.name), rule.expected)
        if self.kept > self.n:
            raise OptionError("top_k", self.top_k, f"at most {self.n}, the number of candidates")
        if self.seed > MAX_SEED - self.n:
            raise OptionError("seed", self.seed, f"at most {MAX_SEED - self.n}, for {self.n} candidates")
        if self.record and self.search != EXHAUSTIVE:
            raise OptionError("search", str(self.search), f"{EXHAUSTIVE}, because a recording finishes every candidate")
        if self.stop and (self.record or self.search != EXHAUSTIVE):
            rule_name = next(part.name for part in fields(StopRules) if getattr(self, part.name) is not None)
            raise OptionError(
                rule_name, getattr(self, rule_name), f"none: only an {EXHAUSTIVE} search without a recording ends early"
            )

    @property
    def kept(self) -> int:
        """How many of the best are kept."""
        return min(4, self.n) if self.top_k is None else self.top_k

    @property
    def pipeline_arguments(self) -> dict[str, Any]:
        """Further arguments of the pipeline's call: `pipe_kwargs`, and the options that are handed on as they are."""
        named = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.metadata["to_pipeline"]}
        return {**{name: value for name, value in named.items() if value is not None}, **(self.pipe_kwargs or {})}

    @property
    def stop(self) -> StopRules:
        """The rules that end the run early."""
        return StopRules(confidence=self.confidence, max_evaluations=self.max_evaluations, max_seconds=self.max_seconds)


class GenerationKeywords(TypedDict, total=False):
    """The fields of `GenerationOptions` as keywords, for type checkers and editors."""

    n: int
    more: int | None
    top_k: int | None
    diverse: bool
    seed: int
    strict: bool
    steps: int | None
    guidance_scale: float | None
    negative_prompt: str | None
    height: int | None
    width: int | None
    batch_size: int | None
    eta: float | None
    pipe_kwargs: Mapping[str, Any] | None
    search: str | Path
    record: bool
    confidence: float | None
    max_evaluations: int | None
    max_seconds: float | None
