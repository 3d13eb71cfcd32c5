"""The command `plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from sp_rerank.cli.console import Json, complete_run, print_json, say, tell


def plan(
    recordings: Annotated[
        list[Path], typer.Argument(help="run folders made with generate --record", autocompletion=complete_run)
    ],
    gain: Annotated[float, typer.Option(help="share of the gain that the pick must keep")] = 0.99,
    top_gain: Annotated[float, typer.Option(help="share of the gain that the best k must keep")] = 0.97,
    strategy: Annotated[list[str], typer.Option(help="screening or halving  [default: whichever is cheaper]")] = [],  # noqa: B006
    scorer: Annotated[
        str | None, typer.Option(help="a scorer of the recordings; see --also  [default: the selecting]")
    ] = None,
    top_k: Annotated[int, typer.Option(help="how many images are wanted", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="seed of the halves: one chooses, the other reports", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="the schedule, for generate --search")] = Path("plan.toml"),
    as_json: Json = False,
) -> None:
    """Find the cheapest schedule that keeps the gain, on half of the recorded prompts; report it on the others."""
    from sp_rerank.errors import UsageError
    from sp_rerank.report.tables import percent, to_json
    from sp_rerank.run.folder import RunDir
    from sp_rerank.search import planner
    from sp_rerank.search.recorded import read_recording
    from sp_rerank.search.schedule import WHEN, Drops, describe, to_toml
    from sp_rerank.storage import atomic

    for name, share in (("--gain", gain), ("--top-gain", top_gain)):
        if not 0 < share <= 1:
            raise UsageError(f"{name} is {share}; expected a number above 0, at most 1")
    for name in strategy:
        if name not in WHEN:
            raise UsageError(f"--strategy is {name!r}; expected one of {', '.join(WHEN)}")
    read = [read_recording(RunDir.read(folder), scorer=scorer) for folder in recordings]
    chosen: list[Drops] = [name for name in get_args(Drops) if not strategy or name in strategy]
    schedule, estimate = planner.plan(
        read,
        top_k=top_k,
        gain=gain,
        top_gain=top_gain,
        strategies=chosen,
        seed=seed,
    )
    lines = [
        f"gain of the pick            {percent(estimate.gain)} %",
        f"gain of the best {top_k:<3}        {percent(estimate.top_gain)} %",
        f"the same pick               {percent(estimate.same_pick)} %",
        f"overlap of the best {top_k:<3}     {percent(estimate.overlap)} %",
        f"evaluations                 {estimate.saving:.2f}x fewer",
    ]
    remarks = [f"On {estimate.prompts} prompts that did not choose it [95 % interval over prompts]:", *lines]
    atomic.write(out, to_toml(schedule, remarks).encode())
    if as_json:
        print_json({"file": str(out), "schedule": to_json(schedule), "estimate": to_json(estimate)})
        return
    tell(f"{schedule.strategy}: {', '.join(map(describe, schedule.rounds))}")
    for line in lines:
        tell(line)
    say(f"on {estimate.prompts} prompts that did not choose it; written: {out}, for generate --search {out}")
