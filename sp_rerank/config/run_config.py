"""What makes a run this run and no other: run.json, checked key by key. Knows JSON and ranges; knows no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from reprlib import repr as brief
from typing import Any, NamedTuple, cast

from sp_rerank.config.checkpoint import Provenance
from sp_rerank.config.rules import (
    COUNT,
    FLAG,
    GUIDANCE,
    MAPPING,
    MAX_SEED,
    RISING,
    SEED,
    SIDE,
    STEPS,
    TEXT,
    TEXTS,
    Rule,
    key,
    or_none,
)  # fmt: skip
from sp_rerank.config.search_plan import SearchPlan, StopRules
from sp_rerank.errors import UsageError


class Part(NamedTuple):
    """Candidates of a run that are searched by themselves.

    Attributes:
        start: Index of the first.
        stop: Index behind the last.
        search: How they are searched.
    """

    start: int
    stop: int
    search: SearchPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What makes a run this run and no other; with any of it changed the pixels change.

    A field that a run.json does not hold is None: older versions and other tools wrote less. Readers that need it call
    `require` first.

    Attributes:
        n: Number of candidates of the whole run.
        grown: Numbers of candidates that the run had when it grew, as far as they decide how the rest is searched;
            see `parts`.
        prompt: What the images should show.
        negative_prompt: What they should not show.
        truncated: A line for each reader that does not read the prompt to its end, with all that is lost.
        model: Name, repository or folder.
        revision: Commit of a repository; None for a folder.
        provenance: What the model was made of beside that: LoRAs, textual inversions, a file.
        pipeline: Class name.
        safety_checker: Whether the pipeline has one.
        scorers: Full names; the first one ranks.
        search: How the candidates are searched.
        stop: When the run ends before its last candidate.
        steps: Number of scheduler steps.
        guidance_scale: Scale of classifier-free guidance.
        scheduler: Class name, or a name of `sp_rerank.config.samplers` where the class is set up in one way of several.
        height: In pixels; None takes the model's own.
        width: In pixels; None takes the model's own.
        dtype: Precision of the pipeline, such as "float32".
        device: Kind of device, such as "cuda".
        compiled: Whether the denoiser is compiled, which rounds otherwise; None where it is not.
        batch_size: Number of images made at once, at most.
        seed: Seed of the first candidate.
        pipe_kwargs: Further arguments of the pipeline.
        versions: Versions of the libraries by name.
    """

    n: int = field(metadata={"rule": COUNT})
    grown: tuple[int, ...] = key(RISING, ())
    prompt: str = key(TEXT)
    negative_prompt: str = key(TEXT, "")
    truncated: tuple[str, ...] = key(TEXTS, ())
    model: str = key(TEXT)
    revision: str | None = key(or_none(TEXT))
    provenance: Provenance = field(default_factory=Provenance)
    pipeline: str = key(TEXT)
    safety_checker: bool = key(FLAG)
    scorers: tuple[str, ...] = key(TEXTS, ())
    search: SearchPlan = field(default_factory=SearchPlan)
    stop: StopRules = field(default_factory=StopRules)
    steps: int = key(STEPS)
    guidance_scale: float = key(GUIDANCE)
    scheduler: str = key(TEXT)
    height: int | None = key(or_none(SIDE))
    width: int | None = key(or_none(SIDE))
    dtype: str = key(TEXT)
    device: str = key(TEXT)
    compiled: bool | None = key(or_none(FLAG))
    batch_size: int = key(COUNT)
    seed: int = key(SEED, 0)
    pipe_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any], metadata={"rule": MAPPING})
    versions: Mapping[str, str] = field(default_factory=dict[str, str], metadata={"rule": MAPPING})

    def to_json(self) -> dict[str, Any]:
        """The fields as run.json holds them; what is not set is left out."""
        record = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        record |= {"search": self.search.to_json(), "stop": self.stop.to_json()}
        record["provenance"] = self.provenance.to_json()
        for name in ("truncated", "scorers"):
            record[name] = list(record[name])
        for name in ("pipe_kwargs", "versions"):
            record[name] = dict(record[name])
        record["grown"] = list(self.grown) or None
        return {name: value for name, value in record.items() if value is not None and value != {}}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> RunConfig:
        """The configuration of a run.json, without its schema.

        Raises:
            UsageError: Naming the key that is unknown, missing or of another type than expected.
        """
        entries = {entry.name: entry for entry in fields(cls)}
        unknown = sorted(record.keys() - entries.keys())
        if unknown:
            raise UsageError(f"unknown key {brief(unknown[0])}; it may be of a newer version")
        values: dict[str, Any] = {}
        for name, value in record.items():
            if name in _READERS:
                values[name] = _named(name, _READERS[name], value)
            elif value is not None:
                given: Any = tuple(cast("list[Any]", value)) if isinstance(value, list) else value
                rule: Rule = entries[name].metadata["rule"]
                if not rule.holds(given):
                    raise UsageError(f"{name} is {brief(cast('object', value))}; expected {rule.expected}")
                values[name] = given
        if "n" not in values:
            raise UsageError(f"n is missing; expected {COUNT.expected}, the number of candidates")
        if values.get("seed", 0) > MAX_SEED - values["n"]:
            raise UsageError(f"seed is {values['seed']}; expected at most {MAX_SEED - values['n']}")
        if values.get("grown", (0,))[-1] >= values["n"]:
            raise UsageError(f"grown is {list(values['grown'])}; expected numbers below {values['n']}, the candidates")
        return cls(**values)

    @property
    def members(self) -> tuple[str, ...]:
        """The scorers the mean of whose ranks ranks the candidates; none where one scorer does."""
        names = tuple(self.scorers[0].split("+")) if self.scorers else ()
        return names if len(names) > 1 and set(names) <= set(self.scorers[1:]) else ()

    def parts(self) -> list[Part]:
        """The run in the parts that are searched one after another, each by itself.

        A run that never grew is one part. A search that drops candidates takes those that were added by themselves,
        and keeps the same share of them. Any other one is cut where it grew and where the batch that was cut short
        there would have ended, so that all later batches are those of a run that was made at once.
        """
        if not self.grown:
            return [Part(0, self.n, self.search)]
        size, bounds = self.batch_size or 1, {0, *self.grown, self.n}
        if not self.search.drops:
            bounds |= {min(self.n, -(-number // size) * size) for number in self.grown}
        parts = [Part(start, stop, self.search) for start, stop in pairwise(sorted(bounds))]
        if not self.search.drops:
            return parts
        first, *later = parts
        return [
            first,
            *(part._replace(search=self.search.for_part(part.stop - part.start, first.stop)) for part in later),
        ]

    def grown_to(self, n: int, stop: StopRules) -> RunConfig:
        """This run with more candidates, or with other rules to end it; the candidates that it has stay as they are.

        Args:
            n: Number of candidates, at least as many as now.
            stop: Rules from here on.
        """
        cut = n > self.n and (self.search.drops or self.n % (self.batch_size or 1))
        return replace(self, n=n, stop=stop, grown=(*self.grown, self.n) if cut else self.grown)

    def of_any_size(self) -> RunConfig:
        """The run without what its number of candidates decides: equal for two of which one can grow to the other."""
        where = replace(self.provenance, offload=False)
        return replace(self, n=1, grown=(), search=self.search.of_any_size(), provenance=where)

    def require(self, *names: str) -> None:
        """Check that these fields are set.

        Raises:
            UsageError: Naming the first that is not.
        """
        for name in names:
            if getattr(self, name) in (None, ()):
                raise UsageError(f"run.json does not hold {name!r}, which this needs; it may be of another tool")

    def differences(self, other: RunConfig) -> list[str]:
        """A line for each field in which another configuration differs: "steps is 8, not 16".

        `truncated` is left out: it follows from the prompt and the models.
        """
        found = [
            f"{entry.name} is {_shown(getattr(self, entry.name))}, not {_shown(getattr(other, entry.name))}"
            for entry in fields(self)
            if entry.name not in ("truncated", "provenance") and getattr(self, entry.name) != getattr(other, entry.name)
        ]
        ours, theirs = self.provenance, other.provenance
        return found + [
            f"{name} is {_shown(getattr(ours, name) or None)}, not {_shown(getattr(theirs, name) or None)}"
            for name in ours.differences(theirs)
        ]


_READERS: dict[str, Callable[[object], Any]] = {
    "search": SearchPlan.from_json,
    "stop": StopRules.from_json,
    "provenance": Provenance.from_json,
}


def _named(name: str, read: Callable[[object], Any], value: object) -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise UsageError(f"{name} is {brief(value)}: {error}") from error


def _shown(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, SearchPlan | StopRules):
        value = value.to_json()
    elif isinstance(value, Sequence) and not isinstance(value, str):
        value = list(cast("Sequence[object]", value))
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
