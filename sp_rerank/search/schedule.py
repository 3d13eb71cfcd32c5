"""Schedules: which strategy, in which rounds. Reads and writes the TOML that `--search FILE` follows.

    strategy = "screening"        # or "halving"
    rounds = [                    # a round's steps (of halving: share of the steps), and how many go on
        {steps = 8, keep = 12},
    ]
    buckets = [1, 2, 4, 8, 16]    # of halving, optional: the survivors of a batch are rounded up, for compiled models
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module, resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from sp_rerank.diffusion.previews import find_decoder
from sp_rerank.errors import UsageError
from sp_rerank.search.base import Strategy
from sp_rerank.search.exhaustive import exhaustive
from sp_rerank.storage import atomic

log = logging.getLogger(__name__)

EXHAUSTIVE, FAST, STEERING = "exhaustive", "fast", "steering"
NAMES = (EXHAUSTIVE, FAST, STEERING)
WHEN = {"screening": "steps", "halving": "share"}
"""What a round of each strategy is counted in."""

STRATEGIES = ("screening", "halving", "steering", "recording")
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
        buckets: of halving, sizes to which the survivors of a batch are rounded up.
        made_for: n, steps, model and scorer of the runs that it was made for; empty if it is for any.
    """

    strategy: str
    rounds: tuple[tuple[float, float], ...]
    made_for: Mapping[str, Any] = field(default_factory=dict)
    buckets: tuple[int, ...] = ()


def read_schedule(path: Path) -> Schedule:
    """The schedule in a file.

    Raises:
        UsageError: if there is none, or it has an unknown key or a value out of its range.
        StorageError: if it cannot be read.
    """
    if not path.is_file():
        raise UsageError(
            f"no search {str(path)!r}: expected {', '.join(NAMES)}, or a schedule file from `sp-rerank plan`"
        )
    with atomic.storage_errors(path):
        text = path.read_bytes()
    try:
        return _parsed(tomllib.loads(text.decode()))
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path} is no schedule: {error}; make one with `sp-rerank plan`") from error


def shipped() -> Path:
    """The file of the schedule FAST."""
    return Path(str(resources.files("sp_rerank.search"))) / "fast.toml"


def _parsed(record: dict[str, Any]) -> Schedule:
    known = {"strategy", "rounds", "made_for"} | ({"buckets"} if record.get("strategy") == "halving" else set())
    unknown = sorted(record.keys() - known)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}")
    strategy, made_for = record.get("strategy"), record.get("made_for", {})
    if strategy not in WHEN:
        raise ValueError(f"strategy is {strategy!r}, expected one of {', '.join(WHEN)}")
    if not isinstance(made_for, dict):
        raise ValueError("made_for is no table")
    unknown = sorted(made_for.keys() - set(MADE_FOR))
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r} in made_for")
    rounds = tuple((one[WHEN[strategy]], one["keep"]) for one in record.get("rounds", []))
    if not rounds:
        raise ValueError("there are no rounds")
    for when, keep in rounds:
        if not (0 < when < 1 if strategy == "halving" else type(when) is int and when >= 1):
            raise ValueError(f"{WHEN[strategy]} is {when!r}")
        if not ((type(keep) is int and keep >= 1) or (type(keep) is float and 0 < keep < 1)):
            raise ValueError(f"keep is {keep!r}, expected a number of candidates or a share of them below 1")
    whens, keeps = zip(*rounds, strict=True)
    if any(later <= earlier for earlier, later in pairwise(whens)):
        raise ValueError(f"the rounds' {WHEN[strategy]} are {', '.join(map(str, whens))}, expected rising ones")
    if any(type(later) is type(earlier) and later > earlier for earlier, later in pairwise(keeps)):
        raise ValueError(f"the rounds keep {', '.join(map(str, keeps))}, expected falling numbers")
    buckets = record.get("buckets", [])
    if not isinstance(buckets, list) or any(type(size) is not int or size < 1 for size in buckets):
        raise ValueError(f"buckets are {buckets!r}, expected whole numbers from 1 on")
    return Schedule(strategy, rounds, made_for, tuple(buckets))


def to_toml(schedule: Schedule, remarks: Sequence[str] = ()) -> str:
    """The text of a schedule file, with remarks at its head."""
    when = WHEN[schedule.strategy]
    lines = [f"# {remark}" for remark in remarks]
    lines += [f'strategy = "{schedule.strategy}"', "rounds = ["]
    lines += [f"    {{{when} = {at}, keep = {keep}}}," for at, keep in schedule.rounds]
    lines += ["]"]
    lines += [f"buckets = {list(schedule.buckets)}"] if schedule.buckets else []
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


def plan_for(spec: str | Path, *, n: int, top_k: int, steps: int, model: str, scorer: str) -> Any:
    """What a run's configuration says of its search: EXHAUSTIVE, or a strategy, with rounds in whole candidates.

    A round that takes as many steps as the run itself, or keeps everybody, is left out.

    Args:
        spec: of NAMES, or a schedule file.
        n: candidates of the run.
        top_k: how many the run returns; a share of the candidates is never rounded below it.
        steps: of the run.
        model: of the run, by name.
        scorer: its full name.

    Raises:
        UsageError: if there is no such schedule, or it was made for another run.
    """
    if spec == EXHAUSTIVE:
        return EXHAUSTIVE
    if spec == STEERING:
        return {"strategy": STEERING, "decoder": find_decoder(model)}
    path = shipped() if spec == FAST else Path(spec)
    schedule = read_schedule(path)
    here = {"n": n, "steps": steps, "model": model, "scorer": scorer}
    for key, value in schedule.made_for.items():
        if here[key] != value:
            raise UsageError(
                f"{path} was made for {key} {value!r}, this run has {here[key]!r}; plan again from recordings of such "
                f"runs, or take --search {FAST}"
            )
    rounds = []
    for when, keep in schedule.rounds:
        kept = whole(keep, n=n, top_k=top_k)
        if not top_k <= kept <= n:
            raise UsageError(f"{path} keeps {kept} of {n} candidates; expected from {top_k}, --top-k, to {n}")
        if kept < n and not (schedule.strategy == "screening" and when >= steps):
            rounds.append([when, kept])
    if not rounds:
        log.warning("%s spares nothing of %d candidates with %d steps: all of them are finished", path.name, n, steps)
        return EXHAUSTIVE
    buckets = {"buckets": list(schedule.buckets)} if schedule.buckets else {}
    decoder = {"decoder": find_decoder(model)} if schedule.strategy == "halving" else {}
    return {"strategy": schedule.strategy, "rounds": rounds, **buckets, **decoder}


def recording(steps: int, model: str) -> dict[str, Any]:
    """The search of a run that `plan` learns from: drafts and previews at a grid of which it will choose.

    Args:
        steps: of the run.
        model: by name.
    """
    return {
        "strategy": "recording",
        "drafts": [draft for draft in RECORDED_DRAFTS if draft <= DEAREST_DRAFT * steps],
        "previews": list(RECORDED_PREVIEWS),
        "decoder": find_decoder(model),
    }


def is_recording(search: Any) -> bool:
    """Whether a run's configuration of its search is that of a recording."""
    return isinstance(search, Mapping) and search.get("strategy") == "recording"


def strategy_of(search: Any) -> Strategy:
    """The strategy that a run's configuration names.

    Raises:
        UsageError: if this version knows no such strategy.
    """
    if search == EXHAUSTIVE:
        return exhaustive
    arguments = dict(search) if isinstance(search, Mapping) else {}
    name = arguments.pop("strategy", None)
    if name not in STRATEGIES:
        raise UsageError(
            f"no search {search!r} in this version; expected {EXHAUSTIVE} or one of {', '.join(STRATEGIES)}"
        )
    maker: Callable[..., Strategy] = getattr(import_module(f"sp_rerank.search.{name}"), name)
    return maker(**arguments)
