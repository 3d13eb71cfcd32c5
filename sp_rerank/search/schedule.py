"""Schedules: which strategy, in which rounds. Reads and writes the TOML that `--search FILE` follows.

    strategy = "screening"        # or "halving"
    rounds = [                    # a round's steps (of halving: share of the steps), and how many go on
        {steps = 8, keep = 12},
    ]
    [made_for]                    # optional; a run that differs is refused
    n = 100
    steps = 20
    model = "mini"
    scorer = "clip-mini@3f2a..."

A `keep` below 1 is a share of the candidates. The schedule called "fast" ships with the package and is for any run.
"""

from __future__ import annotations

import logging
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

from sp_rerank.config import EXHAUSTIVE, FAST, SEARCHES, STEERING, Round, SearchPlan
from sp_rerank.config.rules import CONFIDENCE, COUNT, STEPS
from sp_rerank.diffusion.previews import find_decoder
from sp_rerank.errors import UsageError
from sp_rerank.search.base import Strategy
from sp_rerank.search.exhaustive import exhaustive
from sp_rerank.search.halving import halving
from sp_rerank.search.recording import recording
from sp_rerank.search.screening import screening
from sp_rerank.search.steering import steering
from sp_rerank.storage import atomic

log = logging.getLogger(__name__)

Drops = Literal["screening", "halving"]
"""The strategies that leave candidates unfinished, in rounds."""

WHEN: dict[Drops, str] = {"screening": "steps", "halving": "share"}
"""What a round of each strategy is counted in."""

RECORDED_DRAFTS = (6, 8, 10, 12, 15)
DEAREST_DRAFT = 0.4  # of the run's own steps; beyond it a draft spares too little
RECORDED_PREVIEWS = (0.25, 0.4, 0.55, 0.7)

MADE_FOR = ("n", "steps", "model", "scorer")


@dataclass(frozen=True, slots=True)
class Schedule:
    """A strategy with its rounds.

    Attributes:
        strategy: a name of WHEN.
        rounds: steps of the drafts or share of the steps, and how many candidates go on, below 1 a share of them.
        made_for: n, steps, model and scorer of the runs that it was made for; empty if it is for any.
    """

    strategy: Drops
    rounds: tuple[tuple[float, float], ...]
    made_for: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class RunShape:
    """What a schedule must fit.

    Attributes:
        n: Number of candidates.
        top_k: How many of the best are kept; a share of the candidates is never rounded below it.
        steps: Number of scheduler steps.
        model: Name of the model.
        scorer: Full name of the scorer that ranks.
    """

    n: int
    top_k: int
    steps: int
    model: str
    scorer: str


def read_schedule(path: Path) -> Schedule:
    """The schedule in a file.

    Raises:
        UsageError: if there is none, or it has an unknown key or a value out of its range.
        StorageError: if it cannot be read.
    """
    if not path.is_file():
        raise UsageError(
            f"no search {str(path)!r}: expected {', '.join(SEARCHES)}, or a schedule file from `sp-rerank plan`"
        )
    with atomic.storage_errors(path):
        text = path.read_bytes()
    try:
        return _parsed(tomllib.loads(text.decode()))
    except KeyError as error:
        raise UsageError(f"{path} is no schedule: a round without {error}; make one with `sp-rerank plan`") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no schedule: {error}; make one with `sp-rerank plan`") from error


def shipped() -> Path:
    """The file of the schedule FAST."""
    return Path(str(resources.files("sp_rerank.search"))) / "fast.toml"


def _parsed(record: dict[str, Any]) -> Schedule:
    unknown = sorted(record.keys() - {"strategy", "rounds", "made_for"})
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}")
    strategy: Any = record.get("strategy")
    made_for: Any = record.get("made_for", {})
    if not isinstance(strategy, str) or strategy not in WHEN:
        raise ValueError(f"strategy is {strategy!r}, expected one of {', '.join(WHEN)}")
    if not isinstance(made_for, dict):
        raise ValueError("made_for is no table")
    made_for = cast("dict[str, Any]", made_for)
    unknown = sorted(made_for.keys() - set(MADE_FOR))
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r} in made_for")
    entries: Any = record.get("rounds", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in cast("list[Any]", entries)):
        raise ValueError("rounds is no list of tables")
    listed = cast("list[dict[str, Any]]", entries)
    rounds = tuple((entry[WHEN[strategy]], entry["keep"]) for entry in listed)
    if not rounds:
        raise ValueError("there are no rounds")
    for when, keep in rounds:
        if not (CONFIDENCE if strategy == "halving" else STEPS).holds(when):
            raise ValueError(f"{WHEN[strategy]} is {when!r}")
        if not COUNT.holds(keep) and not CONFIDENCE.holds(keep):
            raise ValueError(f"keep is {keep!r}, expected a number of candidates or a share of them below 1")
    whens, keeps = zip(*rounds, strict=True)
    if any(later <= earlier for earlier, later in pairwise(whens)):
        raise ValueError(f"the rounds' {WHEN[strategy]} are {', '.join(map(str, whens))}, expected rising ones")
    if any(type(later) is type(earlier) and later > earlier for earlier, later in pairwise(keeps)):
        raise ValueError(f"the rounds keep {', '.join(map(str, keeps))}, expected falling numbers")
    return Schedule(strategy, rounds, made_for)


def to_toml(schedule: Schedule, remarks: Sequence[str] = ()) -> str:
    """The text of a schedule file, with remarks at its head."""
    when = WHEN[schedule.strategy]
    lines = [f"# {remark}" for remark in remarks]
    lines += [f'strategy = "{schedule.strategy}"', "rounds = ["]
    lines += [f"    {{{when} = {at}, keep = {keep}}}," for at, keep in schedule.rounds]
    lines += ["]"]
    if schedule.made_for:
        lines += ["", "[made_for]"]
        lines += [f"{key} = {_toml(value)}" for key, value in schedule.made_for.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value)


def whole(keep: float, *, n: int, top_k: int) -> int:
    """How many of n candidates a round keeps: a share is rounded up, and never below the best k."""
    return max(top_k, math.ceil(keep * n)) if keep < 1 else int(keep)


def plan_for(spec: str | Path, run: RunShape, *, record: bool = False) -> SearchPlan:
    """The search of a run, with rounds in whole candidates.

    A round that takes as many steps as the run itself, or keeps all candidates, is left out.

    Args:
        spec: One of `sp_rerank.config.SEARCHES`, or a schedule file.
        run: What the schedule must fit.
        record: Plan a recording: drafts and previews at a grid that `sp_rerank.search.planner` chooses from.

    Raises:
        UsageError: If there is no such schedule, or it was made for another run.
    """
    if record:
        drafts = tuple(draft for draft in RECORDED_DRAFTS if draft <= DEAREST_DRAFT * run.steps)
        decoder = find_decoder(run.model)
        return SearchPlan(strategy="recording", drafts=drafts, previews=RECORDED_PREVIEWS, decoder=decoder)
    if spec == EXHAUSTIVE:
        return SearchPlan()
    if spec == STEERING:
        return SearchPlan(strategy=STEERING, decoder=find_decoder(run.model))
    path = shipped() if spec == FAST else Path(spec)
    schedule = read_schedule(path)
    for key, value in schedule.made_for.items():
        if getattr(run, key) != value:
            raise UsageError(
                f"{path} was made for {key} {value!r}, this run has {getattr(run, key)!r}; plan again from recordings "
                f"of such runs, or take the search {FAST!r}"
            )
    rounds: list[Round] = []
    for at, keep in schedule.rounds:
        kept = whole(keep, n=run.n, top_k=run.top_k)
        if not run.top_k <= kept <= run.n:
            raise UsageError(f"{path} keeps {kept} of {run.n} candidates; expected from {run.top_k} to {run.n}")
        if kept < run.n and not (schedule.strategy == "screening" and at >= run.steps):
            rounds.append(Round(at, kept))
    if not rounds:
        log.warning(
            "%s spares nothing of %d candidates with %d steps: all of them are finished", path.name, run.n, run.steps
        )
        return SearchPlan()
    decoder = find_decoder(run.model) if schedule.strategy == "halving" else None
    return SearchPlan(strategy=schedule.strategy, rounds=tuple(rounds), decoder=decoder)


def strategy_of(plan: SearchPlan) -> Strategy:
    """The strategy that a plan names, with what it needs."""
    if plan.strategy == "screening":
        return screening([(int(entry.at), entry.keep) for entry in plan.rounds])
    if plan.strategy == "halving":
        return halving(plan.rounds, decoder=plan.decoder)
    if plan.strategy == "recording":
        return recording(plan.drafts, plan.previews, plan.decoder)
    return steering(plan.decoder) if plan.strategy == "steering" else exhaustive
