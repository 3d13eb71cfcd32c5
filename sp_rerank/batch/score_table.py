"""The scores of a whole batch as one table for DuckDB: a row a candidate, without the images.

Knows where units and added scores lie. What is asked of the table is in `agreement` and `overview`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sp_rerank.batch.arrow import arrow, duckdb
from sp_rerank.batch.ledger import Ledger
from sp_rerank.batch.second_pass import SCORES
from sp_rerank.batch.units import OWN_COLUMNS, UNITS
from sp_rerank.errors import NothingUsableError, StorageError

READ = ("prompt_id", "prompt", "index", "seed", "status", "rank", "score")
"""Columns of a unit that are asked for; the other scorers' come with them."""


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """A batch's scores.

    Attributes:
        connection: Of DuckDB, with the table "scores": prompt_id, prompt, index, seed, status, rank, and a column a
            scorer, named s0, s1 and so on; NULL where there is no finite score.
        scorers: The full names of s0, s1 and so on; the first is the one that ranks.
    """

    connection: Any
    scorers: tuple[str, ...]


def read_scores(ledger: Ledger) -> ScoreTable:
    """Read the scores of all units that are done, added ones too.

    Raises:
        UsageError: If there is no batch, or DuckDB is not installed.
        NothingUsableError: If no unit is done.
        StorageError: If a unit cannot be read.
    """
    ledger.check()
    pa, _ = arrow()
    tables = [table for _, table in _tables(ledger, UNITS, images=False)]
    if not tables or ledger.config is None:
        raise NothingUsableError(f"{ledger.place} holds no finished prompt yet")
    ranked_by = ledger.config.config.scorers[0]
    units = pa.concat_tables(tables, promote_options="default")
    names = {"score": ranked_by} | {name: name for name in units.column_names if name not in OWN_COLUMNS}
    connection = duckdb().connect()
    connection.register("units", units)
    connection.execute(f"create table scores as select {_listed(names)} from units")
    scorers = list(names.values())
    for name, table in _added(ledger).items():
        column = f"s{scorers.index(name)}" if name in scorers else f"s{len(scorers)}"
        connection.register("added", table)
        if name not in scorers:
            scorers.append(name)
            connection.execute(f"alter table scores add column {column} double")
        connection.execute(
            f"update scores set {column} = added.score from added "
            'where added.prompt_id = scores.prompt_id and added."index" = scores."index"'
        )
        connection.unregister("added")
    return ScoreTable(connection, tuple(scorers))


def _listed(names: dict[str, str]) -> str:
    """The columns of the table; a scorer's name is no name of a column there, for it may hold anything."""
    own = [f'"{name}"' for name in READ if name != "score"]
    quoted = ['"' + column.replace('"', '""') + '"' for column in names]
    return ", ".join([*own, *(f"{column} as s{number}" for number, column in enumerate(quoted))])


def _added(ledger: Ledger) -> dict[str, Any]:
    """The scores of second passes by the scorer's full name: prompt_id, index, score."""
    pa, _ = arrow()
    found: dict[str, list[Any]] = {}
    for table in (table for _, table in _tables(ledger, SCORES)):
        found.setdefault(table.schema.metadata[b"sp_rerank"].decode(), []).append(table)
    return {name: pa.concat_tables(tables, promote_options="default") for name, tables in found.items()}


def _tables(ledger: Ledger, kind: str, *, images: bool = True) -> Iterator[tuple[str, Any]]:
    """(key, table) of the objects of a kind, in the order of their keys."""
    pa, parquet = arrow()
    for key in sorted(entry.key for entry in ledger.store.list(f"{kind}/")):
        try:
            with ledger.store.open(key) as opened, parquet.ParquetFile(opened, pre_buffer=False) as file:
                columns = None if images else [name for name in file.schema_arrow.names if name not in _UNREAD]
                yield key, file.read(columns=columns, use_threads=False)  # a small file each
        except (pa.ArrowException, OSError) as error:
            raise StorageError(f"{ledger.place}/{key} is no object of a batch: {error}; delete it") from error


_UNREAD = OWN_COLUMNS - set(READ)
