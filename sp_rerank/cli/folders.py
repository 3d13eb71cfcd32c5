"""The commands that read a run folder: replay, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sp_rerank.cli.console import load_pipeline, quiet, tell
from sp_rerank.errors import OptionError


def replay(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    index: Annotated[int, typer.Argument(help="Index of the candidate, as in its file name.")],
    steps: Annotated[int | None, typer.Option(help="Number of scheduler steps, if not the run's own.", min=1)] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="PNG file. [default: RUN/replays/INDEX.png]")] = None,
    model: Annotated[str | None, typer.Option(help="Where the model is now. [default: as in the run]")] = None,
) -> None:
    """Make one candidate again: the same pixels on the same machine, or the same seed with other steps."""
    from sp_rerank.replay import replay_to
    from sp_rerank.run.folder import RunDir
    from sp_rerank.run.layout import inside

    if out and out.suffix.lower() != ".png":
        raise OptionError("out", str(out), "a name that ends in .png, the format that holds every pixel")
    folder = RunDir.read(run)
    config = folder.config
    config.require("prompt", "steps", "guidance_scale", "batch_size", "model")
    config.require("device", "dtype", "scheduler", "safety_checker")
    name = f"replays/{index:05d}.png" if steps is None else f"replays/{index:05d}-{steps}steps.png"
    target = out or inside(run, name)
    with quiet():
        pipe = load_pipeline(
            model or config.model, config.device, config.dtype, config.scheduler, config.safety_checker
        )
        same = replay_to(folder, index, target, pipe=pipe, steps=steps)
    verdict = {None: "", True: "; every pixel is the same", False: "; the pixels differ: another machine or version?"}
    tell(f"{target}{verdict[same]}")


def verify(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Check every file of a run folder against its manifest."""
    from sp_rerank.errors import StorageError
    from sp_rerank.run.folder import RunDir

    folder = RunDir.read(run)
    being_written, problems = folder.being_written, folder.verify()
    for problem in problems:
        tell(problem)
    done = f"{run}: {len(folder.rows)} of {folder.n} candidates"
    if problems:
        raise StorageError(f"{done}, {len(problems)} problems; --resume makes missing and changed images again")
    tell(
        f"{done}, being written, every image so far as it was written"
        if being_written
        else f"{done}, every image as it was written"
    )
