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
    SCORER_VARIABLE,
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
from sp_rerank.errors import NothingUsableError, StorageError, UsageError
from sp_rerank.stats.ranking import finite

if TYPE_CHECKING:
    from sp_rerank.rank import FileRanking, RankedFile
    from sp_rerank.scorers.calibration import ScorerCalibration
    from sp_rerank.storage.image_files import LeftOut

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""


def rank(
    places: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Image files, and folders of images.")],
    prompt: Annotated[
        str | None,
        typer.Option(
            help="What the images should show.  [default: what each file tells: metadata of AUTOMATIC1111, ComfyUI or "
            "InvokeAI, ours, or a NAME.txt beside it]"
        ),
    ] = None,
    scorer: Annotated[
        list[str],
        typer.Option(
            help="Ranks the images, as in generate; given again, more columns beside the first.",
            autocompletion=complete_scorer,
            envvar=SCORER_VARIABLE,
        ),
    ] = ["sp"],  # noqa: B006  # typer reads it, and passes a new list
    top_k: Annotated[int | None, typer.Option(help="Show only the best.  [default: all]", min=1)] = None,
    diverse: Annotated[
        bool, typer.Option("--diverse", help="Show --top-k images that are no near-copies of each other.")
    ] = False,
    recursive: Annotated[bool, typer.Option("--recursive", help="Also take the folders in folders.")] = False,
    write: Annotated[
        bool,
        typer.Option(
            "--write",
            help="Write stars, score and rank into the files that are shown, as XMP, where image browsers read them; "
            "pixels and all other metadata stay.",
        ),
    ] = False,
    device: Device = "auto",
    dtype: Annotated[
        str,
        typer.Option(help="Of the scorers: float32; bfloat16 and float16 are faster on some machines, less exact."),
    ] = "float32",
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the result as CSV.")] = False,
) -> None:
    """Rank images that exist already; those of several prompts within each prompt."""
    from sp_rerank.diffusion import loading
    from sp_rerank.rank import rank_files
    from sp_rerank.scorers import resolve_spec
    from sp_rerank.scorers.calibration import calibration_of
    from sp_rerank.storage.image_files import find_images

    if prompt is not None and not prompt.strip():
        raise UsageError("the prompt is empty; expected words that say what the images should show")
    if diverse and top_k is None:
        raise UsageError("--diverse chooses some of the images; say how many with --top-k")
    check_words(scorers=scorer, device=device, dtype=dtype)
    for place in places:
        _refuse_run_folder(place)
    found = find_images(places, recursive=recursive)
    for line in _left_out(found.left_out):
        say(line)
    if not found.files:  # said before a scorer is loaded, or even downloaded
        raise _nothing(places)
    if write:
        _refuse_files_of_runs(found.files)
    groups, silent = ({prompt: found.files}, []) if prompt is not None else _by_prompt(found.files)
    with quiet():
        hardware = loading.find_device(device)
        model = _model_of(found.files) if any(resolve_spec(spec, None)[1] for spec in scorer) else None
        rankers = [load_scorer(spec, model, hardware, dtype) for spec in scorer]
        rankings = {words: rank_files(rankers, words, files, top_k, diverse=diverse) for words, files in groups.items()}
        calibration = calibration_of(rankers[0])
    unreadable = [error for ranking in rankings.values() for error in ranking.unreadable]
    for error in unreadable:
        say(f"skipped: {error}")
    if unreadable:
        say(f"skipped {len(unreadable)} of {sum(map(len, groups.values()))} images")
    usable = {words: ranking for words, ranking in rankings.items() if ranking.files}
    if not usable:
        raise _nothing(places)
    unwritten = _write_ratings(usable) if write else []
    if as_json:
        records = [_record(words, ranking, calibration is not None) for words, ranking in usable.items()]
        left_out = [{"file": str(item.path), "why": item.why} for item in found.left_out]
        left_out += [{"file": str(file), "why": "no prompt"} for file in silent]
        shared = {"skipped": [str(error) for error in unreadable], "left_out": left_out}
        print_json({**(records[0] if len(records) == 1 else {"rankings": records}), **shared})
    elif as_csv:
        _print_csv(usable)
    else:
        _print_rankings(usable, calibration)
    for ranking in usable.values():
        if ranking.copies is not None:
            say(_cost(ranking, ranking.copies))
    if unwritten:
        raise StorageError(f"the ratings of {len(unwritten)} images could not be written; see the lines above")


def _nothing(places: list[Path]) -> NothingUsableError:
    return NothingUsableError(
        f"no image in {', '.join(map(str, places))} could be read; expected PNG, JPEG, WebP, AVIF, BMP, GIF or TIFF "
        "files"
    )


def _model_of(files: list[Path]) -> str | None:
    """The model that made all of them, if they say so: the scorer "sp" is the one that belongs to it."""
    from sp_rerank.storage.embedded_prompts import embedded_model

    first = embedded_model(files[0])
    return first if first and all(embedded_model(file) == first for file in files[1:]) else None


def _by_prompt(files: list[Path]) -> tuple[dict[str, list[Path]], list[Path]]:
    """The files by the prompt that each tells, and those that tell none, which a line names."""
    from sp_rerank.storage.embedded_prompts import embedded_prompt

    groups: dict[str, list[Path]] = {}
    silent: list[Path] = []
    for file in files:
        words = embedded_prompt(file)
        (silent if words is None else groups.setdefault(words, [])).append(file)
    named = f"{', '.join(map(str, silent[:3]))}{f' and {len(silent) - 3} more' if len(silent) > 3 else ''}"
    if not groups:
        raise UsageError(
            f"no prompt is known of {named}; expected --prompt TEXT, metadata of AUTOMATIC1111, ComfyUI or InvokeAI, "
            "or a NAME.txt beside each image"
        )
    if silent:
        say(f"left out for want of a prompt: {named}; say with --prompt what they should show")
    return groups, silent


def _write_ratings(rankings: dict[str, FileRanking]) -> list[StorageError]:
    """Write what is known of each file into it; an error for each that could not be written."""
    from sp_rerank.storage.ratings import Rating, stars_of, write_rating

    failed: list[StorageError] = []
    for ranking in rankings.values():
        for file in ranking.files:
            name, score = next(iter(file.scores.items()))
            if not math.isfinite(score):
                continue
            try:
                rating = Rating(stars_of(file.rank, ranking.readable), score, name, file.rank, ranking.readable)
                write_rating(file.file, rating)
            except StorageError as error:
                say(f"not written: {error}")
                failed.append(error)
    return failed


def _refuse_files_of_runs(files: list[Path]) -> None:
    """Those of a run folder are known by their hashes: a rating in them would be damage."""
    from sp_rerank.run.layout import CONFIG

    for folder in dict.fromkeys(file.resolve().parent for file in files):
        run = next((place for place in (folder, *folder.parents) if (place / CONFIG).is_file()), None)
        if run:
            raise UsageError(
                f"{run} is a run folder, whose files are checked by their hashes; --write changes files: copy them "
                f"out first, with sp-rerank pick {run} INDEX --out FOLDER"
            )


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


def _record(prompt: str, ranking: FileRanking, calibrated: bool) -> dict[str, Any]:
    """The ranking of one prompt's files for programs."""
    names = list(ranking.files[0].scores)
    return {
        "prompt": prompt,
        "scorer": names[0],
        "scorers": names,
        "calibrated": calibrated,
        "cost": ranking.cost,
        "ranking": [_rank_row(file) for file in ranking.files],
    }


def _print_csv(rankings: dict[str, FileRanking]) -> None:
    """One line a file: rank and score by the first scorer, then score and rank by each further one.

    Of several prompts there is one more column, the prompt.
    """
    others = list(next(iter(rankings.values())).files[0].scores)[1:]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    columns = [f"{what} {name}" for name in others for what in ("score", "rank")]
    several = len(rankings) > 1
    writer.writerow(["rank", "score", "file", *columns, *(["prompt"] if several else [])])
    for prompt, ranking in rankings.items():
        for row in map(_rank_row, ranking.files):
            further = [row[what][name] for name in others for what in ("scores", "ranks")]
            last = [f" {prompt}" if prompt[:1] in FORMULA else prompt] if several else []
            writer.writerow([row["rank"], row["score"], _no_formula(row["file"]), *further, *last])


def _print_rankings(rankings: dict[str, FileRanking], calibration: ScorerCalibration | None) -> None:
    """The files in their order; of several prompts each order under its prompt."""
    for prompt, ranking in rankings.items():
        if len(rankings) > 1:
            tell(f"{prompt}:")
        _print_ranking(ranking.files)
        for line in _ties(ranking, calibration):
            say(line)


def _no_formula(path: str) -> str:
    """The same path, so that a spreadsheet does not compute it."""
    return f"./{path}" if path[:1] in FORMULA else path


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
