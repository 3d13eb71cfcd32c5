"""Do the scorers agree about a whole batch? The averages of `sp_rerank.compare`, from one table of all scores.

Knows the table; the figures are in `sp_rerank.stats.agreement_by_row`. Scores of one prompt only are ever compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from sp_rerank.batch.ledger import Ledger
from sp_rerank.batch.score_table import ScoreTable, read_scores
from sp_rerank.compare.compare import within_prompts
from sp_rerank.compare.comparison import TOP, Comparison, MeanAgreement
from sp_rerank.config import EXHAUSTIVE
from sp_rerank.errors import UsageError
from sp_rerank.stats.agreement import Array, Estimate
from sp_rerank.stats.agreement_by_row import agreement_by_row


def compare_batch(ledger: Ledger, *, seed: int = 0) -> Comparison:
    """The scorers of a batch by each other: averages over its prompts, without the single ones.

    Args:
        ledger: The batch, with units that are done; of a prompt the candidates count that both scorers gave a score.
        seed: Of the bootstrap.

    Raises:
        UsageError: If there is no batch, or fewer than two scorers.
        NothingUsableError: If no unit is done.
        StorageError: If a unit cannot be read.
    """
    table = read_scores(ledger)
    if len(table.scorers) < 2:
        raise UsageError(
            f"{ledger.place} holds the scores of one scorer; add another: `sp-rerank batch score {ledger.place} "
            "--scorer NAME`"
        )
    config = ledger.config
    sampled = config is not None and config.config.search.strategy == EXHAUSTIVE
    pairs = [_pair(table, a, b, sampled, seed) for a, b in combinations(range(len(table.scorers)), 2)]
    prompts = table.connection.execute("select count(distinct prompt) from scores").fetchone()[0]
    return Comparison(table.scorers, prompts, (), tuple(pair for pair in pairs if pair), ())


def _pair(table: ScoreTable, first: int, second: int, sampled: bool, seed: int) -> MeanAgreement | None:
    """Two scorers by their places; None where they share no prompt with two candidates."""
    found = [(prompts, agreement_by_row(a, b, TOP)) for prompts, a, b in _matrices(table, first, second)]
    if not found:
        return None
    names = [name for prompts, _ in found for name in prompts]
    rows = [row for _, row in found]

    def mean(columns: Sequence[Array]) -> Estimate:
        return within_prompts(list(zip(names, np.concatenate(columns).tolist(), strict=True)), seed)

    unknown = [np.full(len(row.kendall), np.nan) for row in rows]
    return MeanAgreement(
        scorers=(table.scorers[first], table.scorers[second]),
        kendall=mean([row.kendall for row in rows]),
        spearman=mean([row.spearman for row in rows]),
        overlap={k: mean([row.overlap[k] for row in rows]) for k in TOP},
        rank_by=(mean([row.rank_by[0] for row in rows]), mean([row.rank_by[1] for row in rows])),
        normalized_gain=(
            mean([row.normalized_gain[0] for row in rows] if sampled else unknown),
            mean([row.normalized_gain[1] for row in rows] if sampled else unknown),
        ),
    )


def _matrices(table: ScoreTable, first: int, second: int) -> Iterator[tuple[list[str], Array, Array]]:
    """(m prompts, (m, n) scores, (m, n) scores) for each number n of candidates that both scored, from two on."""
    columns: dict[str, Any] = table.connection.execute(
        f"select prompt, count(*) over (partition by prompt_id) as n, s{first} as a, s{second} as b from scores "
        f'where s{first} is not null and s{second} is not null order by n, prompt_id, "index"'
    ).fetchnumpy()
    sizes = columns["n"]
    for n in np.unique(sizes).tolist():
        if n > 1:
            chosen = sizes == n
            a, b = (np.asarray(columns[name], float)[chosen].reshape(-1, n) for name in ("a", "b"))
            yield columns["prompt"][chosen][::n].tolist(), a, b
