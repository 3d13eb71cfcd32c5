"""The page of a folder of runs: each scorer's best of every run, side by side, a row a run.

The figure is that of papers on reranking: the top 1 of 100 by one scorer beside that of another. Knows run folders and
their galleries. Runs are of different prompts, so nothing is pooled: every row stands for itself.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from urllib.parse import quote

from sp_rerank.errors import SpRerankError, StorageError, UsageError
from sp_rerank.report import gallery
from sp_rerank.report.orderings import Ordering, orderings_of
from sp_rerank.report.page import page
from sp_rerank.report.pictures import Picture, picture_of
from sp_rerank.run.folder import RunDir
from sp_rerank.run.layout import CONFIG
from sp_rerank.stats import ranking
from sp_rerank.storage import atomic


@dataclass(frozen=True, slots=True)
class Pick:
    """A scorer's best candidate of a run.

    Attributes:
        index: Index of the candidate.
        seed: its seed.
        score: as text.
        picture: its file, by its path from the run folder.
        others: (rank, label) by each other scorer that ranks it.
    """

    index: int
    seed: int
    score: str
    picture: Picture
    others: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the page.

    Attributes:
        link: from the page to the run folder: escaped for a URL, ending in a slash.
        prompt: Prompt of the run.
        made: how many candidates it has.
        n: how many it is to have.
        ended: whether a rule ended it with those that it has.
        picks: The best candidate by the full name of each scorer.
    """

    link: str
    prompt: str
    made: int
    n: int
    ended: bool
    picks: dict[str, Pick]


def write_overview(folder: str | Path) -> tuple[Path, dict[str, SpRerankError]]:
    """Write the page of a folder of runs, and the gallery of each run, for the page leads there.

    Args:
        folder: its run folders lie right in it; what else is there is left alone.

    Returns:
        The path of index.html; and by its folder's name, for every run that could not be shown, why.

    Raises:
        UsageError: if there is no run folder in it.
        StorageError: if the page cannot be written.
    """
    folder = Path(folder)
    runs, errors = _read_runs(folder)
    for name, run in runs.items():
        try:
            gallery.write_gallery(run)
        except SpRerankError as error:  # a folder that is only to be read has a row all the same
            errors[name] = error
    path = folder / gallery.FILE
    atomic.write(path, overview(runs, {name: _without(folder, error) for name, error in errors.items()}))
    return path, errors


def overview(runs: Mapping[str, RunDir], errors: Mapping[str, str]) -> bytes:
    """The page in UTF-8.

    Args:
        runs: Runs by the name of their folder, which lies beside the page.
        errors: what is wrong with a run, by the name of its folder.
    """
    orderings = {name: orderings_of(run) for name, run in runs.items()}
    runs_of = Counter(ordering.name for several in orderings.values() for ordering in several)
    labels = ranking.short_names(name for name, _ in runs_of.most_common())
    entries = [_entry(name, run, orderings[name]) for name, run in runs.items()]
    sizes = {entry.made if entry.ended else entry.n for entry in entries}
    return page(
        "overview.html",
        styles=("page.css", "overview.css"),
        title=f"The best of {sizes.pop()}" if len(sizes) == 1 else "The best of each run",
        entries=entries,
        labels=labels,
        same=_same_picks(entries, labels),
        errors=errors,
        ordinal=ranking.ordinal,
        shortened=gallery.shortened,
    )


def _read_runs(folder: Path) -> tuple[dict[str, RunDir], dict[str, SpRerankError]]:
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; a run folder or a folder of them was expected")
    with atomic.storage_errors(folder):
        names = sorted(path.name for path in folder.iterdir() if (path / CONFIG).is_file())
    if not names:
        raise UsageError(f"{folder} is no run folder and holds none: there is no {CONFIG} in it or right below it")
    runs: dict[str, RunDir] = {}
    errors: dict[str, SpRerankError] = {}
    for name in names:
        try:
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise StorageError(f"{folder / name}: leads out of the folder, through a link, and is not followed")
            runs[name] = RunDir.read(folder / name)
        except SpRerankError as error:
            errors[name] = error
    return runs, errors


def _without(folder: Path, error: SpRerankError) -> str:
    """The message without the place of the folder on this machine: the page may be given away."""
    return str(error).replace(f"{folder}{os.sep}", "")


def _entry(name: str, run: RunDir, orderings: Sequence[Ordering]) -> Entry:
    picks = {}
    for ordering in orderings:
        index = ordering.order[0]
        picks[ordering.name] = Pick(
            index,
            run.rows[index].seed,
            ordering.text(ordering.scores[index]),
            picture_of(run, run.rows[index]),
            tuple((rank, other.label) for other in orderings if other is not ordering and (rank := other.rank(index))),
        )
    # "./" first: a folder may be called "javascript:x"
    ended = gallery.ended_by_rule(run)
    return Entry(f"./{quote(name)}/", gallery.prompt_of(run), len(run.rows), run.n, ended, picks)


def _same_picks(entries: Sequence[Entry], labels: Mapping[str, str]) -> list[str]:
    """In how many runs two scorers rank the same image first, a sentence for any two."""
    sentences = []
    for a, b in combinations(labels, 2):
        both = [entry for entry in entries if a in entry.picks and b in entry.picks]
        same = sum(entry.picks[a].index == entry.picks[b].index for entry in both)
        if len(both) > 1:
            sentences.append(f"{labels[a]} and {labels[b]} choose the same image in {same} of {len(both)} runs.")
    return sentences
