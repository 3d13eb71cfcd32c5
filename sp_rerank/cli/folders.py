"""The commands that read a run folder: replay, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sp_rerank.cli.console import complete_run, load_pipeline, quiet, tell
from sp_rerank.errors import OptionError, UsageError


def replay(
    run: Annotated[Path, typer.Argument(help="Run folder.", autocompletion=complete_run)],
    indices: Annotated[
        list[int], typer.Argument(metavar="INDEX...", help="Indices of the candidates, as in their file names.")
    ],
    steps: Annotated[int | None, typer.Option(help="Number of scheduler steps, if not the run's own.", min=1)] = None,
    scale: Annotated[
        float | None, typer.Option(help="Make the image so many times as large, by image-to-image.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="With --scale: how much is made anew, above 0 and at most 1. [default: 0.35]")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="PNG file, or a folder for several. [default: RUN/replays/INDEX.png]"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Where the model is now. [default: as in the run]")] = None,
) -> None:
    """Make candidates again: the same pixels on the same machine, the same seed with other steps, or larger."""
    from sp_rerank.diffusion.placement import provenance_of
    from sp_rerank.replay import STRENGTH, Replays
    from sp_rerank.run.folder import RunDir

    if strength is not None and scale is None:
        raise OptionError("strength", strength, "none without a scale: it says how much of a larger image is made anew")
    indices = list(dict.fromkeys(indices))
    changes = [f"{steps}steps"] if steps else []
    changes += [f"x{scale:g}"] if scale else []
    changes += [f"strength{strength:g}"] if strength else []
    folder = RunDir.read(run)
    targets = _targets(run, indices, "-".join(["", *changes]), out)
    config = folder.config
    config.require("prompt", "steps", "guidance_scale", "batch_size", "model")
    config.require("device", "dtype", "scheduler", "safety_checker")
    folder.check_holds(indices)
    with quiet():
        pipe = load_pipeline(
            model or config.model, config.device, config.dtype, config.scheduler, config.safety_checker,
            config.provenance.options(), bool(config.compiled),
        )  # fmt: skip
        changed = config.provenance.changed_files(provenance_of(pipe))
        if changed:
            raise UsageError(f"{' and '.join(changed)} of {run} changed since it was made; expected the same files")
        strength = STRENGTH if strength is None else strength
        again = Replays(folder, pipe, steps=steps, scale=scale, strength=strength)
        verdict = {
            None: "",
            True: "; every pixel is the same",
            False: "; the pixels differ: another machine or version?",
        }
        for index, target in zip(indices, targets, strict=True):
            tell(f"{target}{verdict[again.write(index, target)]}")


def _targets(run: Path, indices: list[int], changes: str, out: Path | None) -> list[Path]:
    """Where each candidate goes."""
    from sp_rerank.run.layout import inside

    names = [f"{index:05d}{changes}.png" for index in indices]
    if out is None:
        return [inside(run, f"replays/{name}") for name in names]
    if len(indices) == 1:
        if out.suffix.lower() != ".png":
            raise OptionError("out", str(out), "a name that ends in .png, the format that holds every pixel")
        return [out]
    if out.suffix.lower() == ".png" or out.is_file():
        raise OptionError("out", str(out), f"a folder, for {len(indices)} candidates")
    return [out / name for name in names]


def verify(run: Annotated[Path, typer.Argument(help="Run folder.", autocompletion=complete_run)]) -> None:
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
