"""The command `compare`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sp_rerank.cli.console import (
    Device,
    Json,
    check_words,
    complete_run,
    complete_scorer,
    load_scorer,
    plain,
    print_json,
    progress_bar,
    quiet,
    say,
    tell,
)
from sp_rerank.errors import NothingUsableError, OptionError, SpRerankError, StorageError, UsageError

if TYPE_CHECKING:
    from sp_rerank.compare.comparison import Comparison
    from sp_rerank.run.folder import RunDir
    from sp_rerank.types import Scorer


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="run folders; of several also the averages within prompts", autocompletion=complete_run),
    ],
    scorer: Annotated[
        list[str],
        typer.Option(
            help="as in rank, beside those whose scores the runs hold; given again, more of them",
            autocompletion=complete_scorer,
        ),
    ] = [],  # noqa: B006  # typer reads it, and passes a new list
    steady: Annotated[
        bool, typer.Option("--steady", help="ask each --scorer again about mirrored and cropped images")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="SVG file to draw the agreement into")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="HTML file for all candidates of runs of one prompt, in one order")
    ] = None,
    keep: Annotated[bool, typer.Option(help="write new scores into the run folders")] = True,
    seed: Annotated[int, typer.Option(help="seed of the bootstrap", min=0)] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Do the scorers agree? Whom each would have chosen, how far they agree, what a pick is worth to the others."""
    from sp_rerank.compare import tables as report
    from sp_rerank.compare.compare import compare as compare_runs
    from sp_rerank.diffusion import loading
    from sp_rerank.report.tables import to_json
    from sp_rerank.storage import atomic

    check_words(scorers=scorer, device=device)
    _check_files(plot, sheet)
    rankers: list[Scorer] = []
    lost: list[SpRerankError] = []
    folders = list(_readable(runs, lost.append))
    if not folders:
        _say_lost(lost, left=0)
    if scorer:
        with quiet():
            hardware = loading.find_device(device)
            rankers = [load_scorer(spec, None, hardware) for spec in scorer]
            candidates = sum(row.status == "ok" for run in folders for row in run.rows.values())
            with progress_bar(candidates, "candidates") as progress:
                found = compare_runs(
                    folders, rankers, steady=steady, keep=keep, seed=seed, progress=progress, failed=lost.append
                )
    else:
        found = compare_runs(folders, steady=steady, seed=seed, failed=lost.append)
    _say_lost(lost, left=len(found.runs))
    if scorer and keep:
        _show_new_scores(folders)
    if plot:
        atomic.write(plot, report.plot(found))
        say(f"written: {plot}")
    if sheet:
        _write_sheet(sheet, found)
    if as_json:
        print_json({**to_json(found), "not_compared": [str(error) for error in lost]})
    else:
        for line in report.markdown(found).splitlines():
            tell(plain(line))
    _check_all_scored(rankers, found)


def _check_files(plot: Path | None, sheet: Path | None) -> None:
    """What would be a pity to learn after the scoring."""
    from sp_rerank.report.tables import new_figure

    if sheet and sheet.suffix.lower() not in (".html", ".htm"):
        raise OptionError("sheet", str(sheet), "a name that ends in .html")
    if plot:
        if plot.suffix.lower() != ".svg":
            raise UsageError(f"--plot is {str(plot)!r}; expected a name that ends in .svg, the only format it draws")
        new_figure()
        if not plot.parent.is_dir():
            raise UsageError(f"--plot: {plot.parent} is not a folder; expected the name of a file in one that is there")


def _write_sheet(sheet: Path, found: Comparison) -> None:
    from sp_rerank.report.together import joint_sheet
    from sp_rerank.run.folder import RunDir
    from sp_rerank.storage import atomic

    folders = [RunDir.read(run.run) for run in found.runs]
    atomic.write(sheet, joint_sheet(folders, [run.scores for run in found.runs], sheet.absolute().parent))
    say(f"written: {sheet}")


def _readable(runs: Sequence[Path], failed: Callable[[SpRerankError], None]) -> Iterator[RunDir]:
    from sp_rerank.run.folder import RunDir

    for run in runs:
        try:
            yield RunDir.read(run)
        except SpRerankError as error:
            failed(error)


def _say_lost(lost: Sequence[SpRerankError], *, left: int) -> None:
    """Name the runs that cannot be compared; where none is left, the first of their errors ends the command."""
    for error in lost if left else lost[1:]:
        say(f"not compared: {error}")
    if not left:
        raise lost[0]


def _check_all_scored(scorers: Sequence[Scorer], found: Comparison) -> None:
    """End with an error where a scorer that was asked for has no score at all; the problems name the reason."""
    broken = [scorer.name for scorer in scorers if scorer.name not in found.scorers]
    failed = [run.failed[name] for run in found.runs for name in broken if name in run.failed]
    if failed:
        raise UsageError(f"{failed[0]}; the others are compared")
    if broken:
        raise NothingUsableError(f"scorer {', '.join(broken)}: no score for any candidate; the others are compared")


def _show_new_scores(runs: Sequence[RunDir]) -> None:
    """Write the galleries anew, for now they know more; a folder that cannot be written was named already."""
    from sp_rerank.report.gallery import write_gallery
    from sp_rerank.run.folder import RunDir

    for run in runs:
        with suppress(StorageError):
            write_gallery(RunDir.read(run.path))
