"""How a run is searched and when it ends, as run.json holds it: strategies, rounds, stages, rules."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from reprlib import repr as brief
from typing import Any, Literal, NamedTuple, cast, get_args

from sp_rerank.config.rules import CONFIDENCE, COUNT, MAX_SEED, SPACING, STEPS, Rule, key, number, or_none, whole

EXHAUSTIVE, FAST, STEERING = "exhaustive", "fast", "steering"
SEARCHES = (EXHAUSTIVE, FAST, STEERING)
"""What `search` may be, beside the path of a schedule file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRules:
    """When an exhaustive run ends before its last candidate; None where a rule is not set.

    Attributes:
        confidence: End once no candidate that is not made yet is expected to beat the best, with this probability.
        max_evaluations: End before the denoiser is evaluated more often than this.
        max_seconds: End with the batch in which this many seconds are over.
    """

    confidence: float | None = key(or_none(CONFIDENCE))
    max_evaluations: int | None = key(or_none(whole(1, MAX_SEED)))
    max_seconds: float | None = key(or_none(number(0, above=True)))

    def __bool__(self) -> bool:
        return any(getattr(self, rule.name) is not None for rule in fields(self))

    def to_json(self) -> dict[str, Any]:
        """The rules that are set."""
        return {part.name: value for part in fields(self) if (value := getattr(self, part.name)) is not None}

    @classmethod
    def from_json(cls, value: object) -> StopRules:
        """The rules of a run.json.

        Raises:
            ValueError: Naming the key that is unknown or of another type than expected.
        """
        if not isinstance(value, dict):
            raise ValueError("expected a table")
        record = cast("dict[str, Any]", value)
        unknown = sorted(record.keys() - {part.name for part in fields(cls)})
        if unknown:
            raise ValueError(f"unknown key {brief(unknown[0])}")
        for part in fields(cls):
            rule: Rule = part.metadata["rule"]
            if not rule.holds(record.get(part.name)):
                raise ValueError(f"{part.name}: expected {rule.expected}")
        return cls(**record)


@dataclass(frozen=True, slots=True)
class Stage:
    """A point of a search at which candidates are scored before they are finished.

    Attributes:
        kind: "draft": made from the noise with few steps; "preview": the model's prediction on the way to the finish.
        at: Number of steps of the draft, or steps done when the model's prediction is taken.
        of: Where it is taken on the way, the number of steps of the draft or of the run; None for a complete draft.
    """

    kind: Literal["draft", "preview"]
    at: int
    of: int | None = None

    @property
    def label(self) -> str:
        """The name for people and run folders: "draft, 8 steps", "draft, 4 of 6 steps", "preview, 6 of 16 steps"."""
        steps = f"{self.at} steps" if self.of is None else f"{self.at} of {self.of} steps"
        return f"{self.kind}, {steps}"

    @classmethod
    def parse(cls, label: object) -> Stage:
        """The stage of a label.

        Raises:
            ValueError: If it is no label.
        """
        found = re.fullmatch(r"(draft|preview), (\d{1,6})(?: of (\d{1,6}))? steps", str(label))
        if not isinstance(label, str) or not found or (label.startswith("preview") and not found[3]):
            raise ValueError(
                'a stage should be "draft, N steps", "draft, N of M steps" or "preview, N of M steps", not '
                f"{brief(label)}"
            )
        kind: Any = found[1]
        return cls(kind, int(found[2]), int(found[3]) if found[3] else None)


class Round(NamedTuple):
    """A round of a search: when candidates are scored, and how many go on.

    Attributes:
        at: Number of steps of a draft (screening), or share of the run's steps (halving).
        keep: Number of candidates that go on.
        after: Of screening, the step of the draft after which the model's prediction is scored; None for the complete
            draft.
        weights: How much the score of each round so far says about the finished one, this round's last; empty where
            this round's alone decides.
    """

    at: float
    keep: int
    after: int | None = None
    weights: tuple[float, ...] = ()


StrategyName = Literal["exhaustive", "screening", "halving", "steering", "recording"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """How the candidates of a run are searched.

    Attributes:
        strategy: Name of a module of `sp_rerank.search`.
        rounds: Of screening and halving.
        drafts: Steps of the drafts of a recording.
        inside: Of a recording, (steps of a draft, step after which the model's prediction is scored too).
        spacing: Exponent of the drafts' time steps, see `sp_rerank.diffusion.spacing`; None for the scheduler's own.
        previews: Shares of the steps after which a recording takes previews.
        decoder: The small decoder of previews, as `sp_rerank.diffusion.previews.find_decoder` names it; None for the
            model's own.
    """

    strategy: StrategyName = "exhaustive"
    rounds: tuple[Round, ...] = ()
    drafts: tuple[int, ...] = ()
    inside: tuple[tuple[int, int], ...] = ()
    spacing: float | None = None
    previews: tuple[float, ...] = ()
    decoder: str | None = None

    @property
    def drops(self) -> bool:
        """Whether some candidates are left unfinished: the finished ones are then no sample of all seeds."""
        return self.strategy in ("screening", "halving")

    @property
    def records(self) -> bool:
        """Whether every candidate is scored at every stage and finished all the same, for planning."""
        return self.strategy == "recording"

    @property
    def watches(self) -> bool:
        """Whether candidates are looked at in the pipeline's loop, for which it has to be one that can be watched."""
        return self.strategy not in ("exhaustive", "screening") or any(entry.after for entry in self.rounds)

    @property
    def replayable(self) -> bool:
        """Whether a candidate's seed makes its image again."""
        return self.strategy != "steering"

    def for_part(self, candidates: int, of: int) -> SearchPlan:
        """The plan for some more candidates of a run that it was laid down for.

        Each round keeps the share that it keeps of the run, rounded up; one that would keep all of them is left out.

        Args:
            candidates: Number of candidates of the part.
            of: Number of candidates that the rounds were laid down for.
        """
        shares = [entry._replace(keep=-(-entry.keep * candidates // of)) for entry in self.rounds]
        rounds = only(shares, [entry.keep < candidates for entry in shares])
        return SearchPlan() if self.drops and not rounds else replace(self, rounds=rounds)

    def of_any_size(self) -> SearchPlan:
        """The plan without the numbers of candidates that its rounds keep."""
        return replace(self, rounds=tuple(entry._replace(keep=1) for entry in self.rounds))

    def to_json(self) -> str | dict[str, Any]:
        """The plan as run.json holds it: the word "exhaustive", or the strategy with what it needs."""
        if self == SearchPlan():
            return EXHAUSTIVE
        record: dict[str, Any] = {"strategy": self.strategy}
        if self.drops:
            record["rounds"] = [_round_to_json(entry) for entry in self.rounds]
        if self.records:
            record |= {"drafts": list(self.drafts), "previews": list(self.previews)}
        if self.inside:
            record["inside"] = [list(entry) for entry in self.inside]
        if self.spacing is not None:
            record["spacing"] = self.spacing
        if self.watches:
            record["decoder"] = self.decoder
        return record

    @classmethod
    def from_json(cls, value: object) -> SearchPlan:
        """The plan of a run.json.

        Raises:
            ValueError: If it is none that this version knows.
        """
        record = {"strategy": value} if isinstance(value, str) else value
        if not isinstance(record, dict):
            raise ValueError("expected a strategy's name or a table")
        stored = cast("dict[str, Any]", record)
        unknown = sorted(map(str, stored.keys() - {part.name for part in fields(cls)}))
        if unknown:
            raise ValueError(f"unknown key {brief(unknown[0])}")
        if stored.get("strategy") not in get_args(StrategyName):
            raise ValueError(
                f"expected one of {', '.join(get_args(StrategyName))}, got {brief(stored.get('strategy'))}"
            )
        if not isinstance(stored.get("decoder"), str | None):
            raise ValueError("decoder: expected text or null")
        if not SPACING.holds(stored.get("spacing", 1)):
            raise ValueError(f"spacing: expected {SPACING.expected}")
        rounds = tuple(map(_round, _list(stored, "rounds")))
        for place, entry in enumerate(rounds, start=1):
            if entry.weights and len(entry.weights) != place:
                raise ValueError(f"rounds: expected {place} weights in the round {place}, got {len(entry.weights)}")
        return cls(
            strategy=stored["strategy"],
            rounds=rounds,
            drafts=tuple(_checked_items(stored, "drafts", STEPS)),
            inside=tuple(map(_inside, _list(stored, "inside"))),
            spacing=stored.get("spacing"),
            previews=tuple(_checked_items(stored, "previews", CONFIDENCE)),
            decoder=stored.get("decoder"),
        )


def _list(record: Mapping[str, Any], key: str) -> list[Any]:
    value = record.get(key, [])
    if not isinstance(value, list):
        raise ValueError(f"{key}: expected a list")
    return cast("list[Any]", value)


def _checked_items(record: Mapping[str, Any], key: str, rule: Rule) -> list[Any]:
    items = _list(record, key)
    for item in items:
        if not rule.holds(item):
            raise ValueError(f"{key}: expected {rule.expected}, got {brief(item)}")
    return items


def _inside(value: Any) -> tuple[int, int]:
    parts = cast("list[Any]", value) if isinstance(value, list) else []
    if len(parts) != 2 or not _is_inside(*parts):
        raise ValueError(f"inside: expected [steps of a draft, fewer steps], got {brief(cast('object', value))}")
    return parts[0], parts[1]


def _is_inside(steps: Any, after: Any) -> bool:
    return STEPS.holds(steps) and STEPS.holds(after) and after < steps


def _round_to_json(entry: Round) -> list[Any]:
    record: list[Any] = [entry.at, entry.keep, entry.after, list(entry.weights)]
    return record if entry.after or entry.weights else record[:2]


def _round(value: Any) -> Round:
    parts = cast("list[Any]", value) if isinstance(value, list) else []
    short: list[Any] = [None, []]
    parts = [*parts, *short] if len(parts) == 2 else parts
    if len(parts) != 4 or not _is_round(*parts):
        raise ValueError(
            "rounds: expected [steps or share, number that go on], or these with the step of a draft or null and a "
            f"list of weights, got {brief(cast('object', value))}"
        )
    at, keep, after, weights = parts
    return Round(at, keep, after, tuple(weights))


def _is_round(at: Any, keep: Any, after: Any, weights: Any) -> bool:
    sound = (STEPS.holds(at) or CONFIDENCE.holds(at)) and COUNT.holds(keep) and are_weights(weights)
    return sound and (after is None or _is_inside(at, after))


def are_weights(value: object) -> bool:
    """Whether a value is a list of finite numbers."""
    finite = number(-sys.float_info.max)
    return isinstance(value, list) and all(map(finite.holds, cast("list[object]", value)))


def only(rounds: Sequence[Round], taken: Sequence[bool]) -> tuple[Round, ...]:
    """The rounds that are taken; the weight of one that is left out goes with it."""
    kept = [entry for entry, take in zip(rounds, taken, strict=True) if take]
    return tuple(
        entry._replace(weights=tuple(weight for weight, take in zip(entry.weights, taken, strict=False) if take))
        for entry in kept
    )
