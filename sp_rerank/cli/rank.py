"""The command `rank`, and how a ranking of files is printed."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sp_rerank.cli.console import (
    Device,
    Json,
    check_words,
    complete_scorer,
    load_scorer,
    print_json,
    quiet,
    say,
    tell,
)  # fmt: skip
from sp_rerank.errors import NothingUsableError, UsageError
from sp_rerank.stats.ranking import finite

if TYPE_CHECKING:
    from sp_rerank.rank import FileRanking, RankedFile
    from sp_rerank.scorers.calibration import ScorerCalibration
    from sp_rerank.storage.image_files import LeftOut


def rank(
    places: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Image files, and folders of images.")],
    prompt: Annotated[str, typer.Option(help="What the images should show.")],
    scorer: Annotated[
        list[str],
        typer.Option(
            help="Ranks the images, as in generate; given again, more columns beside the first.",
            autocompletion=complete_scorer,
        ),
    ] = ["sp"],  # noqa: B006  # typer reads it, and passes a new list
    top_k: Annotated[int | None, typer.Option(help="Show only the best.  [default: all]", min=1)] = None,
    diverse: Annotated[
        bool, typer.Option("--diverse", help="Show --top-k images that are no near-copies of each other.")
    ] = False,
    recursive: Annotated[bool, typer.Option("--recursive", help="Also take the folders in folders.")] = False,
    device: Device = "auto",
    dtype: Annotated[
        str,
        typer.Option(help="Of the scorers: float32; bfloat16 and float16 are faster on some machines, less exact."),
    ] = "float32",
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the result as CSV.")] = False,
) -> None:
    """Rank images that exist already."""
    from sp_rerank.diffusion import loading
    from sp_rerank.rank import rank_files
    from sp_rerank.scorers.calibration import calibration_of
    from sp_rerank.storage.image_files import find_images

    if not prompt.strip():
        raise UsageError("the prompt is empty; expected words that say what the images should show")
    if diverse and top_k is None:
        raise UsageError("--diverse chooses some of the images; say how many with --top-k")
    check_words(scorers=scorer, device=device, dtype=dtype)
    for place in places:
        _refuse_run_folder(place)
    found = find_images(places, recursive=recursive)
    for line in _left_out(found.left_out):
        say(line)
    nothing = NothingUsableError(
        f"no image in {', '.join(map(str, places))} could be read; expected PNG, JPEG, WebP, AVIF, BMP, GIF or TIFF "
        "files"
    )
    if not found.files:  # said before a scorer is loaded, or even downloaded
        raise nothing
    with quiet():
        hardware = loading.find_device(device)
        rankers = [load_scorer(spec, None, hardware, dtype) for spec in scorer]
        ranking = rank_files(rankers, prompt, found.files, top_k, diverse=diverse)
        calibration = calibration_of(rankers[0])
    ranked, unreadable = ranking.files, ranking.unreadable
    for error in unreadable:
        say(f"skipped: {error}")
    if unreadable:
        say(f"skipped {len(unreadable)} of {len(found.files)} images")
    if not ranked:
        raise nothing
    if as_json:
        print_json({
            "prompt": prompt,
            "scorer": next(iter(ranked[0].scores)),
            "scorers": list(ranked[0].scores),
            "calibrated": calibration is not None,
            "cost": ranking.cost,
            "skipped": [str(error) for error in unreadable],
            "left_out": [{"file": str(item.path), "why": item.why} for item in found.left_out],
            "ranking": [_rank_row(r) for r in ranked],
        })
    elif as_csv:
        _print_csv(ranked)
    else:
        _print_ranking(ranked)
        for line in _ties(ranking, calibration):
            say(line)
    if ranking.copies is not None:
        say(_cost(ranking, ranking.copies))


def _refuse_run_folder(place: Path) -> None:
    """Its contact sheet and the copies of its best are no images to rank."""
    from sp_rerank.run.layout import CONFIG, IMAGES

    if (place / CONFIG).is_file():
        raise UsageError(
            f"{place} is a run folder; to rank its candidates by more scorers: sp-rerank compare {place} --scorer "
            f"NAME; to rank its image files: sp-rerank rank {place / IMAGES} --prompt TEXT"
        )


def _left_out(left_out: list[LeftOut]) -> Iterator[str]:
    """A line for each reason for which something in a folder is not ranked."""
    reasons = {
        "folder": "folders (--recursive takes those that are no links)",
        "hidden": "hidden files",
        "broken link": "broken links",
        "not a file": "entries that are no files",
        "no image": "files of no image format that is read",
    }
    for why, words in reasons.items():
        names = [str(item.path) for item in left_out if item.why == why]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        if names:
            yield f"left out {words}: {', '.join(names[:3])}{more}"


def _ties(ranking: FileRanking, calibration: ScorerCalibration | None) -> Iterator[str]:
    """How many images are as good as the best, as far as it is known; no line where there is one image only."""
    if ranking.readable < 2:
        return
    if calibration is None:
        yield "no calibration: ties unknown"
        return
    people = "simulated people" if calibration.simulated else "people"
    if ranking.tied == 1:
        yield f"the first is told apart from the others, as {people} would"
    else:
        yield f"the first {ranking.tied} are not told apart: {people} would differ about them"


def _cost(ranking: FileRanking, copies: int) -> str:
    """What a diverse choice is, and what it cost."""
    ranks = ", ".join(str(file.rank) for file in ranking.files)
    what = f"{copies} near-copies, for want of other images" if copies else "no near-copies"
    return f"{what}: ranks {ranks}; their mean score is {ranking.cost:.4f} lower than that of the best as many"


def _rank_row(ranked: RankedFile) -> dict[str, Any]:
    """For JSON and CSV; "score" is the first scorer's, None where it is not finite."""
    scores = {name: finite(score) for name, score in ranked.scores.items()}
    first = next(iter(scores.values()))
    return {
        "rank": ranked.rank,
        "tie_group": ranked.tie_group,
        "score": first,
        "file": str(ranked.file),
        "scores": scores,
        "ranks": ranked.ranks,
    }


def _print_csv(ranked: list[RankedFile]) -> None:
    """One line a file: rank and score by the first scorer, then score and rank by each further one."""
    others = list(ranked[0].scores)[1:]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    columns = [f"{what} {name}" for name in others for what in ("score", "rank")]
    writer.writerow(["rank", "score", "file", *columns])
    for row in map(_rank_row, ranked):
        further = [row[what][name] for name in others for what in ("scores", "ranks")]
        writer.writerow([row["rank"], row["score"], _no_formula(row["file"]), *further])


def _no_formula(path: str) -> str:
    """The same path, so that a spreadsheet does not compute it."""
    return f"./{path}" if path[:1] in "=+-@\t\r" else path


def _print_ranking(ranked: list[RankedFile]) -> None:
    """One line a file; where there are several scorers, a header, and the rank by each further one in brackets."""
    names = list(ranked[0].scores)
    lines = [["rank", *names, "file"]] if len(names) > 1 else []
    for r in ranked:
        scores = [f"{score:.4f}" if math.isfinite(score) else "not finite" for score in r.scores.values()]
        ranks = ["", *(f" ({rank:d})" for rank in list(r.ranks.values())[1:])]
        lines.append([str(r.rank), *(f"{score}{rank}" for score, rank in zip(scores, ranks, strict=True)), str(r.file)])
    widths = [4, *(max(10, *(len(line[column]) for line in lines)) for column in range(1, len(names) + 1))]
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=False)]
        tell("  ".join([*cells, line[-1]]))
