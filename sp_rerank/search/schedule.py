"""Schedules: which strategy, in which rounds. Reads and writes the TOML that `--search FILE` follows.

    strategy = "screening"        # or "halving"
    spacing = 0.8                 # of the drafts' time steps (`sp_rerank.diffusion.spacing`); left out, the scheduler's
    rounds = [                    # a round's steps (of halving: share of the steps), and how many go on
        {steps = 6, after = 4, keep = 0.4},                     # the model's prediction after 4 steps of a draft of 6
        {steps = 6, keep = 12, weights = [0.2, 0.8]},           # the draft itself; both scores count
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
from dataclasses import dataclass, field, replace
from importlib import resources
from itertools import pairwise
from pathlib import Path
from reprlib import repr as brief
from typing import Any, Literal, NamedTuple, cast

from sp_rerank.config import EXHAUSTIVE, FAST, SEARCHES, STEERING, Round, SearchPlan, rules
from sp_rerank.config.search_plan import are_weights, only
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

SPACING = 0.8  # found on recordings of the mini model: docs/reports/search.md
RECORDED_DRAFTS = (4, 5, 6, 8, 10, 12, 15)
DEAREST_DRAFT = 0.4  # of the run's own steps; beyond it a draft spares too little
RECORDED_INSIDE = {6: (3, 4, 5), 8: (3, 4, 5, 6), 10: (4, 6), 12: (5, 8), 15: (6, 10)}
"""By the steps of a draft, after which of them it is looked into."""
RECORDED_PREVIEWS = (0.25, 0.4, 0.55, 0.7)

MADE_FOR = ("n", "steps", "model", "scorer")


class ScheduledRound(NamedTuple):
    """A round as a file has it, for any number of candidates.

    Attributes:
        at: As in `sp_rerank.config.Round`, like the others.
        keep: Number of candidates that go on, or their share where it is below 1.
        after: See there.
        weights: See there.
    """

    at: float
    keep: float
    after: int | None = None
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Schedule:
    """A strategy with its rounds.

    Attributes:
        strategy: a name of WHEN.
        rounds: Steps of the drafts or share of the steps, and how many candidates go on, below 1 a share of them.
        made_for: n, steps, model and scorer of the runs that it was made for; empty if it is for any.
        spacing: Exponent of the drafts' time steps; None for those of the scheduler.
    """

    strategy: Drops
    rounds: tuple[ScheduledRound, ...]
    made_for: Mapping[str, Any] = field(default_factory=dict[str, Any])
    spacing: float | None = None


@dataclass(frozen=True, slots=True)
class RunShape:
    """What a schedule must fit.

    Attributes:
        n: Number of candidates.
        top_k: How many of the best are kept; a share of the candidates is never rounded below it.
        steps: Number of scheduler steps.
        model: Name of the model.
        scorer: Full name of the scorer that ranks.
        takes_time_steps: Whether its drafts can have time steps of their own.
    """

    n: int
    top_k: int
    steps: int
    model: str
    scorer: str
    takes_time_steps: bool = True


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


def shipped(*, takes_time_steps: bool = True) -> Path:
    """The file of the schedule FAST: the one for pipelines that take time steps, or that for all others."""
    return Path(str(resources.files("sp_rerank.search"))) / ("fast.toml" if takes_time_steps else "fast_own_steps.toml")


def _parsed(record: dict[str, Any]) -> Schedule:
    _check_keys(record, ("strategy", "spacing", "rounds", "made_for"))
    strategy: Any = record.get("strategy")
    made_for: Any = record.get("made_for", {})
    spacing: Any = record.get("spacing")
    if not isinstance(strategy, str) or strategy not in WHEN:
        raise ValueError(f"strategy is {strategy!r}, expected one of {', '.join(WHEN)}")
    if spacing is not None and (strategy != "screening" or not rules.SPACING.holds(spacing)):
        raise ValueError(f"spacing is {spacing!r}, expected {rules.SPACING.expected}, for screening alone")
    if not isinstance(made_for, dict):
        raise ValueError("made_for is no table")
    made_for = cast("dict[str, Any]", made_for)
    _check_keys(made_for, MADE_FOR, " in made_for")
    entries: Any = record.get("rounds", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in cast("list[Any]", entries)):
        raise ValueError("rounds is no list of tables")
    listed = cast("list[dict[str, Any]]", entries)
    rounds = tuple(_round(strategy, entry, number) for number, entry in enumerate(listed, start=1))
    if not rounds:
        raise ValueError("there are no rounds")
    places = [(entry.at, entry.after or entry.at) for entry in rounds]
    if any(later <= earlier for earlier, later in pairwise(places)):
        shown = ", ".join(
            f"{at:g}" + (f" after {entry.after}" if entry.after else "")
            for (at, _), entry in zip(places, rounds, strict=True)
        )
        raise ValueError(f"the rounds' {WHEN[strategy]} are {shown}, expected rising ones")
    keeps = [entry.keep for entry in rounds]
    if any(type(later) is type(earlier) and later > earlier for earlier, later in pairwise(keeps)):
        raise ValueError(f"the rounds keep {', '.join(map(str, keeps))}, expected falling numbers")
    return Schedule(strategy, rounds, made_for, spacing)


def _check_keys(record: Mapping[str, Any], known: Sequence[str], where: str = "") -> None:
    unknown = sorted(record.keys() - set(known))
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}{where}")


def _round(strategy: Drops, entry: Mapping[str, Any], number: int) -> ScheduledRound:
    """The round of a table, the `number`-th."""
    when = WHEN[strategy]
    _check_keys(entry, (when, "keep", "weights", *(["after"] if strategy == "screening" else [])), " in a round")
    at, keep, after, weights = entry[when], entry["keep"], entry.get("after"), entry.get("weights", [])
    if not (rules.CONFIDENCE if strategy == "halving" else rules.STEPS).holds(at):
        raise ValueError(f"{when} is {at!r}")
    if not rules.COUNT.holds(keep) and not rules.CONFIDENCE.holds(keep):
        raise ValueError(f"keep is {keep!r}, expected a number of candidates or a share of them below 1")
    if after is not None and not rules.whole(1, at - 1).holds(after):
        raise ValueError(f"after is {after!r}, expected fewer steps than the {at} of the draft, from 1 on")
    if not are_weights(weights) or (weights and len(weights) != number):
        raise ValueError(f"weights is {brief(weights)}, expected {number} numbers, one for each round so far")
    return ScheduledRound(at, keep, after, tuple(weights))


def describe(entry: ScheduledRound) -> str:
    """A round in a few words: "0.4 after 4 of 6"."""
    inside = "" if entry.after is None else f"{entry.after} of "
    return f"{entry.keep:g} after {inside}{entry.at:g}"


def to_toml(schedule: Schedule, remarks: Sequence[str] = ()) -> str:
    """The text of a schedule file, with remarks at its head."""
    lines = [f"# {remark}" for remark in remarks]
    lines += [f'strategy = "{schedule.strategy}"']
    lines += [] if schedule.spacing is None else [f"spacing = {schedule.spacing}"]
    lines += ["rounds = [", *(f"    {_round_to_toml(schedule.strategy, entry)}," for entry in schedule.rounds), "]"]
    if schedule.made_for:
        lines += ["", "[made_for]"]
        lines += [f"{key} = {_toml(value)}" for key, value in schedule.made_for.items()]
    return "\n".join(lines) + "\n"


def _round_to_toml(strategy: Drops, entry: ScheduledRound) -> str:
    parts = [f"{WHEN[strategy]} = {entry.at}"]
    parts += [] if entry.after is None else [f"after = {entry.after}"]
    parts += [f"keep = {entry.keep}"]
    parts += [f"weights = [{', '.join(f'{weight:.4g}' for weight in entry.weights)}]"] if entry.weights else []
    return f"{{{', '.join(parts)}}}"


def _toml(value: Any) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value)


def whole(keep: float, *, n: int, top_k: int) -> int:
    """How many of n candidates a round keeps: a share is rounded up, and never below the best k."""
    return max(top_k, math.ceil(round(keep * n, 6))) if keep < 1 else int(keep)  # 0.07 * 100 is a little above 7


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
        return _recording(run)
    if spec == EXHAUSTIVE:
        return SearchPlan()
    if spec == STEERING:
        return SearchPlan(strategy=STEERING, decoder=find_decoder(run.model))
    path = shipped(takes_time_steps=run.takes_time_steps) if spec == FAST else Path(spec)
    schedule = read_schedule(path)
    _check_fits(schedule, run, path)
    kept = [whole(entry.keep, n=run.n, top_k=run.top_k) for entry in schedule.rounds]
    for number in kept:
        if not run.top_k <= number <= run.n:
            raise UsageError(f"{path} keeps {number} of {run.n} candidates; expected from {run.top_k} to {run.n}")
    screens = schedule.strategy == "screening"
    whole_rounds = [
        Round(entry.at, number, entry.after, entry.weights) for entry, number in zip(schedule.rounds, kept, strict=True)
    ]
    rounds = only(whole_rounds, [e.keep < run.n and not (screens and e.at >= run.steps) for e in whole_rounds])
    if not rounds:
        log.warning(
            "%s spares nothing of %d candidates with %d steps: all of them are finished", path.name, run.n, run.steps
        )
        return SearchPlan()
    plan = SearchPlan(strategy=schedule.strategy, rounds=rounds, spacing=schedule.spacing)
    return replace(plan, decoder=find_decoder(run.model)) if plan.watches else plan


def _recording(run: RunShape) -> SearchPlan:
    """The grid of a recording."""
    drafts = tuple(draft for draft in RECORDED_DRAFTS if draft <= DEAREST_DRAFT * run.steps)
    return SearchPlan(
        strategy="recording",
        drafts=drafts,
        inside=tuple((draft, after) for draft in drafts for after in RECORDED_INSIDE.get(draft, ())),
        spacing=SPACING if run.takes_time_steps else None,
        previews=RECORDED_PREVIEWS,
        decoder=find_decoder(run.model),
    )


def _check_fits(schedule: Schedule, run: RunShape, path: Path) -> None:
    """Refuse a schedule that was made for another run, or one that this pipeline cannot follow.

    Raises:
        UsageError: Naming what differs.
    """
    for key, value in schedule.made_for.items():
        if getattr(run, key) != value:
            raise UsageError(
                f"{path} was made for {key} {value!r}, this run has {getattr(run, key)!r}; plan again from recordings "
                f"of such runs, or take the search {FAST!r}"
            )
    if schedule.spacing is not None and not run.takes_time_steps:
        raise UsageError(
            f"{path} spaces the time steps of its drafts, and this pipeline or its scheduler takes neither timesteps "
            f"nor sigmas; take the search {FAST!r}, or plan again from recordings of such runs"
        )


def strategy_of(plan: SearchPlan) -> Strategy:
    """The strategy that a plan names, with what it needs."""
    if plan.strategy == "screening":
        return screening(plan.rounds, spacing=plan.spacing, decoder=plan.decoder)
    if plan.strategy == "halving":
        return halving(plan.rounds, decoder=plan.decoder)
    if plan.strategy == "recording":
        return recording(plan)
    return steering(plan.decoder) if plan.strategy == "steering" else exhaustive
