"""pyarrow and duckdb, asked for when they are needed, with the word that installs them."""

from __future__ import annotations

from typing import Any

from sp_rerank.errors import UsageError


def arrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet; neither is typed.

    Raises:
        UsageError: If pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError("batches and parquet files need pyarrow; pip install sp-rerank[batch]") from error
    return pyarrow, pyarrow.parquet


def duckdb() -> Any:
    """The module duckdb.

    Raises:
        UsageError: If it is not installed.
    """
    try:
        import duckdb as module
    except ImportError as error:
        raise UsageError("a table of a whole batch needs duckdb; pip install sp-rerank[batch]") from error
    return module
