"""The page of a folder of runs: each scorer's best of every run, a row a run, the runs of one prompt together.

The figure is that of papers on reranking: the top 1 of 100 by one scorer beside that of another. Knows run folders and
their galleries. Prompts are never pooled; of runs of one prompt it says what tells them apart, and whose best is best.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations
from pathlib import Path
from urllib.parse import quote

from sp_rerank.config import EXHAUSTIVE, RunConfig
from sp_rerank.errors import SpRerankError, StorageError, UsageError
from sp_rerank.report import gallery
from sp_rerank.report.orderings import Ordering, orderings_of
from sp_rerank.report.page import page
from sp_rerank.report.pictures import Picture, picture_of
from sp_rerank.run.folder import RunDir
from sp_rerank.run.layout import CONFIG, MANIFEST, RESULT
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
        value: Its score.
    """

    index: int
    seed: int
    score: str
    picture: Picture
    others: tuple[tuple[int, str], ...]
    value: float


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
        facts: What tells it apart from other runs of its prompt: seeds, model, settings, the day.
    """

    link: str
    prompt: str
    made: int
    n: int
    ended: bool
    picks: dict[str, Pick]
    facts: tuple[str, ...]

    @property
    def count(self) -> str:
        """How many candidates it has."""
        if self.ended:
            return f"{self.made} of {self.n} candidates, ended by a rule"
        if self.made < self.n:
            return f"{self.made} of {self.n} candidates so far"
        return f"{self.n} candidate{'s' if self.n > 1 else ''}"


@dataclass(frozen=True, slots=True)
class Group:
    """The runs of one prompt.

    Attributes:
        prompt: Of all of them.
        entries: The oldest first.
        highest: By a scorer's full name the link of the run whose pick it scores highest, where there are several.
        command: Compares them; None of a single run.
    """

    prompt: str
    entries: tuple[Entry, ...]
    highest: dict[str, str]
    command: str | None


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
    groups = _groups(runs, orderings)
    entries = [entry for group in groups for entry in group.entries]
    sizes = {entry.made if entry.ended else entry.n for entry in entries}
    return page(
        "overview.html",
        styles=("page.css", "overview.css"),
        title=f"The best of {sizes.pop()}" if len(sizes) == 1 else "The best of each run",
        entries=entries,
        groups=groups,
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


def _groups(runs: Mapping[str, RunDir], orderings: Mapping[str, Sequence[Ordering]]) -> list[Group]:
    """The runs by their prompts, in the order in which a prompt first comes."""
    names: dict[str, list[str]] = {}
    for name, run in runs.items():
        names.setdefault(gallery.prompt_of(run), []).append(name)
    return [_group(prompt, {name: runs[name] for name in several}, orderings) for prompt, several in names.items()]


def _group(prompt: str, runs: Mapping[str, RunDir], orderings: Mapping[str, Sequence[Ordering]]) -> Group:
    ordered = sorted(runs, key=lambda name: (_when(runs[name]), name))
    configs = [run.config for run in runs.values()]
    entries = tuple(_entry(name, runs[name], orderings[name], configs) for name in ordered)
    highest: dict[str, str] = {}
    for scorer in {scorer for entry in entries for scorer in entry.picks}:
        having = [entry for entry in entries if scorer in entry.picks]
        if len(having) > 1:
            highest[scorer] = max(having, key=lambda entry: entry.picks[scorer].value).link
    command = " ".join(["sp-rerank compare", *map(shlex.quote, ordered), "--sheet both.html"])
    return Group(prompt, entries, highest, command if len(entries) > 1 else None)


def _when(run: RunDir) -> float:
    """When the run ended, or its last candidate was made, in seconds; a copied folder may tell the time of the copy."""
    for name in (RESULT, MANIFEST, CONFIG):
        try:
            return (run.path / name).stat().st_mtime
        except OSError:
            continue
    return 0.0


SETTINGS = ("steps", "guidance_scale", "scheduler", "negative_prompt", "height", "width", "dtype")
"""What may tell runs of one prompt apart beside model, seeds and number of candidates."""


def told_apart(config: RunConfig, others: Sequence[RunConfig]) -> Iterator[str]:
    """The settings in which a run differs from some of the others: "steps 20", "scheduler DDIM"."""
    for name in SETTINGS:
        value = getattr(config, name)
        if value not in (None, "") and any(getattr(other, name) != value for other in others):
            yield f"{name.replace('_', ' ')} {str(value).removesuffix('Scheduler')}"


def _facts(run: RunDir, others: Sequence[RunConfig]) -> Iterator[str]:
    config = run.config
    yield gallery.seeds_of(run)
    if config.model is not None:
        yield str(config.model)
    if config.search.strategy != EXHAUSTIVE:
        yield f"{config.search.strategy} search"
    yield from told_apart(config, others)
    yield f"{datetime.fromtimestamp(_when(run)):%Y-%m-%d %H:%M}"


def _entry(name: str, run: RunDir, orderings: Sequence[Ordering], others: Sequence[RunConfig]) -> Entry:
    picks = {}
    for ordering in orderings:
        index = ordering.order[0]
        picks[ordering.name] = Pick(
            index,
            run.rows[index].seed,
            ordering.text(ordering.scores[index]),
            picture_of(run, run.rows[index]),
            tuple((rank, other.label) for other in orderings if other is not ordering and (rank := other.rank(index))),
            ordering.scores[index],
        )
    # "./" first: a folder may be called "javascript:x"
    ended = gallery.ended_by_rule(run)
    facts = tuple(_facts(run, others))
    return Entry(f"./{quote(name)}/", gallery.prompt_of(run), len(run.rows), run.n, ended, picks, facts)


def _same_picks(entries: Sequence[Entry], labels: Mapping[str, str]) -> list[str]:
    """In how many runs two scorers rank the same image first, a sentence for any two."""
    sentences = []
    for a, b in combinations(labels, 2):
        both = [entry for entry in entries if a in entry.picks and b in entry.picks]
        same = sum(entry.picks[a].index == entry.picks[b].index for entry in both)
        if len(both) > 1:
            sentences.append(f"{labels[a]} and {labels[b]} choose the same image in {same} of {len(both)} runs.")
    return sentences
