"""The page of a batch: how far it is, whether its scorers agree, and the picks for prompts from all over the list.

Knows the batch and its table of scores. Of 10,000 prompts it shows some, evenly
spaced: a page of all of them would be too long to look at.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from sp_rerank.batch.ledger import Ledger
from sp_rerank.batch.score_table import ScoreTable, read_scores
from sp_rerank.batch.units import StoredUnit, decode, key_of
from sp_rerank.errors import StorageError
from sp_rerank.report.page import page
from sp_rerank.report.pictures import SMALL
from sp_rerank.report.thumbnails import SIDE, to_webp
from sp_rerank.stats import ranking
from sp_rerank.storage.images import read_image

SHOWN = 60
"""Prompts of the page."""

FAILURES = 20
"""Failed prompts that the page names."""


@dataclass(frozen=True, slots=True)
class Pick:
    """A scorer's best candidate of a prompt.

    Attributes:
        seed: Of the candidate.
        score: As text.
        image: A small copy as a data: URL; None where the batch keeps no image of it.
        width: Of the copy, in pixels.
        height: Of the copy, in pixels.
        others: (rank, label) by each other scorer.
    """

    seed: int
    score: str
    image: str | None
    width: int
    height: int
    others: tuple[tuple[int, str], ...]

    @property
    def small(self) -> bool:
        """Whether it is shown with hard edges."""
        return max(self.width, self.height) <= SMALL


@dataclass(frozen=True, slots=True)
class Entry:
    """A prompt of the page: its id, the prompt, the number of candidates, and the pick by each scorer's place."""

    id: str
    prompt: str
    count: int
    picks: tuple[Pick | None, ...]


def batch_overview(ledger: Ledger) -> bytes:
    """The page in UTF-8; it holds its images itself.

    Raises:
        UsageError: If there is no batch.
        NothingUsableError: If no unit is done.
        StorageError: If a unit cannot be read.
    """
    table, status, config = read_scores(ledger), ledger.status(), ledger.config
    labels = list(ranking.short_names(table.scorers).values())
    return page(
        "batch.html",
        styles=("page.css", "overview.css"),
        embedded=True,
        status=status,
        config=config.config if config else None,
        same=_same_picks(table, labels),
        entries=[_entry(ledger, table, labels, row_id) for row_id in _spaced(ledger, table)],
        failures=status.failures[:FAILURES],
        labels=labels,
        names=table.scorers,
        ordinal=ranking.ordinal,
    )


def _spaced(ledger: Ledger, table: ScoreTable) -> list[str]:
    """Ids of prompts that are done, evenly spaced over the list."""
    done = {row_id for (row_id,) in table.connection.execute("select distinct prompt_id from scores").fetchall()}
    ids = [row.id for row in ledger.rows() if row.id in done]
    count = min(SHOWN, len(ids))
    return [ids[place * len(ids) // count] for place in range(count)]


def _same_picks(table: ScoreTable, labels: Sequence[str]) -> list[str]:
    """For how many prompts two scorers rank the same image first, a sentence for any two."""
    picks = ", ".join(f'arg_max("index", s{place}) as p{place}' for place in range(len(labels)))
    sentences: list[str] = []
    for a, b in combinations(range(len(labels)), 2):
        same, both = table.connection.execute(
            f"with picks as (select {picks} from scores group by prompt_id) "
            f"select count(*) filter (where p{a} = p{b}), count(*) from picks "
            f"where p{a} is not null and p{b} is not null"
        ).fetchone()
        if both:
            sentences.append(f"{labels[a]} and {labels[b]} choose the same image for {same:,} of {both:,} prompts.")
    return sentences


def _entry(ledger: Ledger, table: ScoreTable, labels: Sequence[str], row_id: str) -> Entry:
    key = key_of(row_id)
    data = ledger.store.read(key)
    if data is None:
        raise StorageError(f"{ledger.place}/{key} has gone; the same command makes it again")
    unit = decode(data, f"{ledger.place}/{key}")
    listed = ", ".join(f"s{place}" for place in range(len(labels)))
    rows = table.connection.execute(
        f'select "index", {listed} from scores where prompt_id = ? order by "index"', [row_id]
    ).fetchall()
    scores = [{row[0]: row[place + 1] for row in rows if row[place + 1] is not None} for place in range(len(labels))]
    ranks = [_ranks(column) for column in scores]
    picks = tuple(_pick(unit, place, scores[place], ranks, labels) for place in range(len(labels)))
    return Entry(row_id, unit.row.prompt, len(unit.candidates), picks)


def _ranks(scores: Mapping[int, float]) -> dict[int, int]:
    """The rank of each index; ties go to the lower one."""
    indices = list(scores)
    return {indices[at]: rank for rank, at in enumerate(ranking.order(list(scores.values())), 1)}


def _pick(
    unit: StoredUnit, place: int, scores: Mapping[int, float], ranks: Sequence[Mapping[int, int]], labels: Sequence[str]
) -> Pick | None:
    if not scores:
        return None
    index = min(ranks[place], key=ranks[place].__getitem__)
    candidate: Mapping[str, Any] = unit.candidates[index]
    image, width, height = _small_copy(candidate["image"])
    others = tuple(
        (ranks[other][index], labels[other]) for other in range(len(labels)) if other != place and index in ranks[other]
    )
    return Pick(candidate["seed"], f"{scores[index]:.4f}", image, width, height, others)


def _small_copy(data: bytes | None) -> tuple[str | None, int, int]:
    if data is None:
        return None, 1, 1
    image = read_image(lambda: io.BytesIO(data), "image")
    copy = to_webp(image, SIDE)
    width, height = read_image(lambda: io.BytesIO(copy), "copy").size
    return "data:image/webp;base64," + base64.b64encode(copy).decode(), width, height
