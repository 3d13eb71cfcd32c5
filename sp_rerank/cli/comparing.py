"""The command `compare`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from sp_rerank.cli.console import Device, Json, load_scorer, plain, print_json, progress_bar, quiet, say, tell
from sp_rerank.errors import StorageError, UsageError


def compare(
    runs: Annotated[list[Path], typer.Argument(help="run folders; of several also the averages within prompts")],
    scorer: Annotated[
        list[str], typer.Option(help="as in rank, beside those whose scores the runs hold; given again, more of them")
    ] = [],  # noqa: B006  # typer reads it, and passes a new list
    steady: Annotated[
        bool, typer.Option("--steady", help="ask each --scorer again about mirrored and cropped images")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="SVG file to draw the agreement into")] = None,
    keep: Annotated[bool, typer.Option(help="write new scores into the run folders")] = True,
    seed: Annotated[int, typer.Option(help="of the bootstrap", min=0)] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Do the scorers agree? Whom each would have chosen, how far they agree, what a pick is worth to the others."""
    from sp_rerank import comparison, durable, models
    from sp_rerank.report import comparison as report
    from sp_rerank.report.results import new_figure, to_json
    from sp_rerank.run import RunDir

    if plot:
        new_figure()  # what would be a pity to learn after the scoring
        if not plot.parent.is_dir():
            raise UsageError(f"--plot: {plot.parent} is not a folder; expected the name of a file in one that is there")
    folders = [RunDir.read(run) for run in runs]
    if scorer:
        with quiet():
            hardware = models.find_device(device)
            rankers = [load_scorer(spec, None, hardware) for spec in scorer]
            candidates = sum(row.status == "ok" for run in folders for row in run.rows.values())
            with progress_bar(candidates, "candidates") as progress:
                found = comparison.compare(folders, rankers, steady=steady, keep=keep, seed=seed, progress=progress)
    else:
        found = comparison.compare(folders, steady=steady, seed=seed)
    if scorer and keep:
        _show_new_scores(runs)
    if plot:
        durable.write(plot, report.plot(found))
        say(f"written: {plot}")
    if as_json:
        print_json(to_json(found))
    else:
        for line in report.markdown(found).splitlines():
            tell(plain(line))


def _show_new_scores(runs: list[Path]) -> None:
    """Write the galleries anew, for now they know more; a folder that cannot be written was named already."""
    from sp_rerank.report.gallery import write_gallery
    from sp_rerank.run import RunDir

    for run in runs:
        with suppress(StorageError):
            write_gallery(RunDir.read(run))
