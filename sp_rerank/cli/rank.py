"""The command `rank`, and how a ranking of files is printed."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sp_rerank.cli.console import Device, Json, load_scorer, plain, print_json, quiet, say, tell
from sp_rerank.errors import NothingUsableError, UsageError

if TYPE_CHECKING:
    from sp_rerank.rank import FileRanking, RankedFile
    from sp_rerank.scorers.calibration import ScorerCalibration


def rank(
    folder: Annotated[Path, typer.Argument(help="with the images, PNG, JPEG, WebP and the like")],
    prompt: Annotated[str, typer.Option(help="what the images should show")],
    scorer: Annotated[
        list[str], typer.Option(help="what ranks, as in generate; given again, more columns beside the first")
    ] = ["sp"],  # noqa: B006  # typer reads it, and passes a new list
    top_k: Annotated[int | None, typer.Option(help="show only the best  [default: all]", min=1)] = None,
    diverse: Annotated[
        bool, typer.Option("--diverse", help="show --top-k that are no near-copies of each other")
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="print the result as CSV")] = False,
) -> None:
    """Rank images that exist already."""
    from sp_rerank.diffusion import loading
    from sp_rerank.rank import rank_files
    from sp_rerank.scorers.calibration import calibration_of
    from sp_rerank.storage.images import find_images

    if not prompt.strip():
        raise UsageError("the prompt is empty; expected words that say what the images should show")
    if diverse and top_k is None:
        raise UsageError("--diverse chooses some of the images; say how many with --top-k")
    nothing = NothingUsableError(
        f"no image in {folder} could be read; expected PNG, JPEG, WebP, BMP, GIF or TIFF files"
    )
    found = find_images(folder)
    if not found:  # said before a scorer is loaded, or even downloaded
        raise nothing
    with quiet():
        hardware = loading.find_device(device)
        rankers = [load_scorer(spec, None, hardware) for spec in scorer]
        ranking = rank_files(rankers, prompt, found, top_k, diverse=diverse)
        calibration = calibration_of(rankers[0])
    ranked, unreadable = ranking.files, ranking.unreadable
    for error in unreadable:
        say(f"skipped: {error}")
    if unreadable:
        say(f"skipped {len(unreadable)} of {len(found)} images")
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
            "ranking": [_rank_row(r) for r in ranked],
        })
    elif as_csv:
        _print_csv(ranked)
    else:
        _print_ranking(ranked)
        say(_ties(ranked, calibration))
    if diverse:
        say(_cost(ranking))


def _ties(ranked: list[RankedFile], calibration: ScorerCalibration | None) -> str:
    """How many of those that are shown are as good as the best, as far as anybody can say."""
    if calibration is None:
        return "no calibration: ties unknown"
    tied = sum(r.tie_group == ranked[0].tie_group for r in ranked)
    people = "simulated people" if calibration.simulated else "people"
    if tied == 1:
        return f"the first is told apart from the others, as {people} would"
    return f"the first {tied} are not told apart: {people} would differ about them"


def _cost(ranking: FileRanking) -> str:
    """What it cost that no near-copies are shown."""
    ranks = ", ".join(str(file.rank) for file in ranking.files)
    return f"no near-copies: ranks {ranks}; their mean score is {ranking.cost:.4f} lower than that of the best as many"


def _rank_row(ranked: RankedFile) -> dict[str, Any]:
    """For JSON and CSV; "score" is the first scorer's, None where it is not finite."""
    scores = {name: score if math.isfinite(score) else None for name, score in ranked.scores.items()}
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
    columns = [f"{what} {plain(name)}" for name in others for what in ("score", "rank")]
    writer.writerow(["rank", "score", "file", *columns])
    for row in map(_rank_row, ranked):
        further = [row[what][name] for name in others for what in ("scores", "ranks")]
        writer.writerow([row["rank"], row["score"], plain(row["file"]), *further])


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
