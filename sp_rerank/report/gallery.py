"""The gallery of a run: index.html beside its images, one static file to look at every candidate by every scorer.

Knows a run folder and what of it a person wants to see. Loads no model: scores, stages and statuses are the
manifest's, tie groups those of calibrations that lie beside weights on this machine. Names no place on this machine
and no time, so that a resumed run has the page of an uninterrupted one.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sp_rerank.config import EXHAUSTIVE, STEERING
from sp_rerank.report import charts
from sp_rerank.report.figures import budget_of, curve_of, pairs_of, picks_of
from sp_rerank.report.orderings import Ordering, is_chance_sample, orderings_of, unranked
from sp_rerank.report.page import page
from sp_rerank.report.pictures import PROBLEMS, Picture, embedded_picture, is_small, picture_of, sizes_of
from sp_rerank.report.thumbnails import write_thumbnails
from sp_rerank.run.folder import RunDir
from sp_rerank.run.records import Row, encode_config
from sp_rerank.stats import ranking
from sp_rerank.storage import atomic

FILE = "index.html"
TITLE = 80  # characters of the prompt in the title of the window
LONG, VERY_LONG = 90, 240  # characters of a prompt, from which on it is set smaller

_STATUS = {
    "flagged": "replaced by the safety checker",
    "nonfinite": "not finite: broken pixels or no score",
    "dropped": "dropped by the search",
}


def write_gallery(run: RunDir) -> Path:
    """Write the gallery into the run folder, in place of an older one, with thumbnails of large images.

    Args:
        run: complete or not; what it holds is shown.

    Returns:
        The path of index.html.

    Raises:
        StorageError: if it cannot be written.
    """
    path = run.path / FILE
    write_thumbnails(run, sizes_of(run))
    atomic.write(path, gallery(run))
    return path


def gallery(run: RunDir, *, embedded: bool = False) -> bytes:
    """The page of a run in UTF-8, for its folder; a file opens without a server, a network or any other file of ours.

    Args:
        run: complete or not, with or without scores.
        embedded: Hold the images in the page, large ones as WebP of at most `pictures.EMBEDDED` pixels a side; the page
            then needs no folder.
    """
    pictures = {index: picture_of(run, row) for index, row in sorted(run.rows.items())}
    if embedded:
        pictures = {index: embedded_picture(run, picture, index) for index, picture in pictures.items()}
    orderings = orderings_of(run)
    first = orderings[0].order if orderings else tuple(unranked(run, set()))
    return page(
        "run.html",
        styles=("page.css", "run.css"),
        scripts=("closeup.js", "marks.js", "run.js"),
        embedded=embedded,
        title=shortened(prompt_of(run), TITLE),
        prompt=prompt_of(run),
        length=length_of(prompt_of(run)),
        negative=run.config.negative_prompt,
        facts=_facts(run),
        notes=_notes(run, pictures, orderings),
        small=is_small(pictures),
        first=first,
        rows=run.rows,
        pictures=pictures,
        orderings=orderings,
        picks=picks_of(orderings, first),
        ordinal=ranking.ordinal,
        shortened=shortened,
        median=statistics.median,
        histograms=[charts.histogram(list(ordering.scores.values())) for ordering in orderings],
        pairs=pairs_of(orderings),
        curves=[curve for ordering in orderings if (curve := curve_of(ordering, orderings))]
        if is_chance_sample(run)
        else [],
        frame=charts,
        steered=run.config.search.strategy == STEERING,
        budget=budget_of(run),
        data={**_data(run, pictures, orderings, first), "embedded": embedded},
    )


def run_key(run: RunDir) -> str:
    """What tells a run from others, in whatever folder it is and however it grows; marks are kept under it."""
    return atomic.sha256_of(encode_config(run.config.of_any_size()))[:16]


def prompt_of(run: RunDir) -> str:
    """The prompt as the page shows it; a run by another tool may have none."""
    return run.config.prompt or ""


def shortened(text: str, most: int) -> str:
    """At most so many characters of a text, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def length_of(prompt: str) -> str:
    """How large a prompt can be set, as a class of page.css."""
    return "long" if len(prompt) > VERY_LONG else "medium" if len(prompt) > LONG else "short"


def ended_by_rule(run: RunDir) -> bool:
    """Whether a rule such as `confidence` ended the run before its last candidate: it is complete as it is."""
    return run.result is not None and run.result.ended.by != "complete"


def _last(run: RunDir) -> int:
    """Index of the last candidate that the run has, or is to have."""
    return max(run.rows) if ended_by_rule(run) else run.n - 1


def seeds_of(run: RunDir) -> str:
    """The seeds of the candidates that a run has, or is to have."""
    first, last = run.config.seed, _last(run)
    return f"seeds {first}–{first + last}" if last else f"seed {first}"


def _facts(run: RunDir) -> list[str]:
    """How the images were made, as far as run.json tells; an older or edited one may not."""
    config = run.config
    count = len(run.rows) if ended_by_rule(run) else run.n
    facts = [f"{count} candidates" if count != 1 else "1 candidate"]
    if config.model is not None:
        facts.append(f"by {config.model}")
    if config.steps is not None:
        of = f" of {config.scheduler.removesuffix('Scheduler')}" if config.scheduler is not None else ""
        facts.append(f"{config.steps} steps{of}")
    if config.guidance_scale is not None:
        facts.append(f"guidance {config.guidance_scale:g}")
    facts.append(seeds_of(run))
    if run.config.search.strategy not in ("", EXHAUSTIVE):
        facts.append(f"{run.config.search.strategy} search")
    return facts


def _notes(run: RunDir, pictures: Mapping[int, Picture], orderings: Sequence[Ordering]) -> list[str]:
    """What a person should know before believing the page."""
    notes = []
    if ended_by_rule(run):
        notes.append(f"A rule ended the run after {len(run.rows)} of {run.n} candidates.")
    elif run.missing:
        notes.append(f"{len(run.rows)} of {run.n} candidates so far; resume the run to go on.")
    if run.config.search.strategy == STEERING:
        notes.append("Steered: the images descend from others of their batch, and no seed alone makes one again.")
    if run.rows and not orderings:
        notes.append("No candidate has a score: they are shown in the order in which they were made.")
    shown = {ordering.name for ordering in orderings}
    notes += [f"{name}: no usable candidate has a score by it." for name in run.config.scorers if name not in shown]
    statuses = Counter(row.status for row in run.rows.values())
    notes += [f"{statuses[status]} {meaning}." for status, meaning in _STATUS.items() if statuses[status]]
    problems = Counter(picture.problem for picture in pictures.values() if picture.problem)
    for problem, meaning in PROBLEMS.items():
        if problems[problem]:
            notes.append(f"{problems[problem]} {'image' if problems[problem] == 1 else 'images'}: {meaning}.")
    return notes


def _data(
    run: RunDir, pictures: Mapping[int, Picture], orderings: Sequence[Ordering], first: Sequence[int]
) -> dict[str, Any]:
    """What run.js needs beside the page's own text."""
    return {
        "run": run_key(run),
        "last": _last(run),
        "prompt": prompt_of(run),
        "negative": run.config.negative_prompt,
        "scorers": [
            {
                "name": ordering.name,
                "label": ordering.label,
                "digits": ordering.digits,
                "order": ordering.order,
                "ranked": len(ordering.scores),
                "groups": ordering.groups,
            }
            for ordering in orderings
        ],
        "order": first,
        "candidates": {
            index: {
                "seed": str(row.seed),  # as text: JavaScript has no whole numbers above 2^53
                "status": row.status,
                "why": _why(row, pictures[index]),
                "scores": [row.scores.get(ordering.name) for ordering in orderings],
                "stages": [[seen.stage.label, seen.score, seen.nfe] for seen in row.stages],
                "evaluations": row.nfe,
                "name": row.file,
                "file": _address(pictures[index].file),
                "small": _address(pictures[index].small),
                "mark": row.sha256[:16],
                "size": [pictures[index].width, pictures[index].height],
            }
            for index, row in run.rows.items()
        },
    }


def _address(file: str | None) -> str | None:
    """Where an image is; one that the page holds is read from there."""
    return None if file and file.startswith("data:") else file


def _why(row: Row, picture: Picture) -> str:
    """What sets a candidate apart, in words; empty for one like any other."""
    reasons = [_STATUS[row.status]] if row.status != "ok" else []
    return "; ".join([*reasons, *([PROBLEMS[picture.problem]] if picture.problem else [])])
