"""Several runs of one prompt in one sheet: all candidates in one order, each with the letter of its run.

Scores of one prompt by one scorer compare across runs. Knows run folders and the scores that it is handed; a comparison
may have made them, and they need not be in the folders.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from urllib.parse import quote

from sp_rerank.errors import UsageError
from sp_rerank.report.gallery import length_of, seeds_of, shortened
from sp_rerank.report.orderings import digits_of
from sp_rerank.report.overview import told_apart
from sp_rerank.report.page import page
from sp_rerank.report.pictures import SMALL, picture_of
from sp_rerank.run.folder import RunDir
from sp_rerank.stats import ranking

MOST = len(ascii_uppercase)
BEST = 10  # of all candidates, whose runs a sentence counts

Scores = Mapping[str, Mapping[int, float | None]]
"""By a scorer's full name, then by the index of a candidate; None where there is no finite one."""


@dataclass(frozen=True, slots=True)
class Place:
    """A candidate of one of the runs.

    Attributes:
        run: Which of the runs.
        index: Of the candidate.
        score: By the scorer that orders.
    """

    run: int
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Member:
    """A run of the sheet.

    Attributes:
        letter: What its candidates are marked with.
        name: Of its folder.
        link: From the page to the folder, ending in a slash.
        facts: What tells it apart.
        rank: Of its best candidate among all; None where it has none in the order.
        best: That candidate.
    """

    letter: str
    name: str
    link: str
    facts: tuple[str, ...]
    rank: int | None
    best: Place | None


def joint_sheet(runs: Sequence[RunDir], scores: Sequence[Scores], folder: Path) -> bytes:
    """The page in UTF-8.

    Args:
        runs: At least two, of one prompt.
        scores: Of each run.
        folder: Where the page will lie; images and galleries are named from there.

    Raises:
        UsageError: If there is one run, they are of several prompts, or no scorer has scored all of them.
    """
    _check(runs)
    shared = [name for name in scores[0] if all(name in own for own in scores)]
    if not shared:
        raise UsageError("no scorer has scored all of these runs; name one, and it scores what is missing")
    orders = {name: _order([own[name] for own in scores]) for name in shared}
    order = orders[shared[0]]
    labels = ranking.short_names(shared)
    members = [_member(place, run, runs, order, folder) for place, run in enumerate(runs)]
    pictures = {(at.run, at.index): picture_of(runs[at.run], runs[at.run].rows[at.index]) for at in order}
    prompt = runs[0].config.prompt
    return page(
        "together.html",
        styles=("page.css", "run.css", "together.css"),
        title=shortened(prompt, 80),
        prompt=prompt,
        length=length_of(prompt),
        members=members,
        order=order,
        seeds=[{index: row.seed for index, row in run.rows.items()} for run in runs],
        pictures=pictures,
        small=all(0 < max(picture.width, picture.height) <= SMALL for picture in pictures.values()),
        scorer=labels[shared[0]],
        digits=digits_of([at.score for at in order]),
        sentences=[_sentence(labels[name], of, members, runs) for name, of in orders.items()],
        names=shared,
        ordinal=ranking.ordinal,
    )


def _check(runs: Sequence[RunDir]) -> None:
    if not 2 <= len(runs) <= MOST:
        raise UsageError(f"a sheet of {len(runs)} runs; expected from 2 to {MOST}, of one prompt")
    prompts = dict.fromkeys(run.config.prompt for run in runs)
    if len(prompts) > 1:
        raise UsageError(f"the runs are of {len(prompts)} prompts; expected runs of one prompt, whose scores compare")


def _order(scores: Sequence[Mapping[int, float | None]]) -> list[Place]:
    """All candidates that have a score, the best first; equal ones in the order of the runs."""
    places = [
        Place(run, index, score)
        for run, own in enumerate(scores)
        for index, score in sorted(own.items())
        if score is not None
    ]
    return [places[place] for place in ranking.order([at.score for at in places])]


def _member(place: int, run: RunDir, runs: Sequence[RunDir], order: Sequence[Place], folder: Path) -> Member:
    rank = next((rank for rank, at in enumerate(order, start=1) if at.run == place), None)
    facts = (f"{len(run.rows)} candidates", seeds_of(run), *_differing(run, runs))
    link = f"{quote(Path(os.path.relpath(run.path, folder)).as_posix())}/"
    best = None if rank is None else order[rank - 1]
    return Member(ascii_uppercase[place], run.path.resolve().name, f"./{link}", facts, rank, best)


def _differing(run: RunDir, runs: Sequence[RunDir]) -> Iterator[str]:
    """The settings in which the runs differ, of one of them."""
    models = {other.config.model for other in runs}
    if run.config.model is not None:
        yield run.config.model if len(models) > 1 else f"by {run.config.model}"
    if len({other.config.search for other in runs}) > 1:
        yield f"{run.config.search.strategy} search"
    yield from told_apart(run.config, [other.config for other in runs])


def _sentence(label: str, order: Sequence[Place], members: Sequence[Member], runs: Sequence[RunDir]) -> str:
    """Whose candidates are among the best by a scorer."""
    first, best = order[0], order[:BEST]
    counts = [sum(at.run == place for at in best) for place in range(len(members))]
    shares = ", ".join(f"{count} of {member.letter}" for count, member in zip(counts, members, strict=True))
    seed = runs[first.run].rows[first.index].seed
    return f"By {label} the first is seed {seed} of {members[first.run].letter}; of the best {len(best)}: {shares}."
