"""Preferences of the hub, or of a folder in its layout, through `datasets`. No code of a data set is run.

Knows how a data set is opened. What its columns mean is in `layouts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sp_rerank.errors import HubUnavailableError, UsageError

HUB = "hub:"
"""Begins the place of such data: hub:OWNER/NAME, or hub:FOLDER, with :SPLIT behind it for another split than train."""

DEFAULT_SPLIT = "train"


def is_hub(place: Path) -> bool:
    """Whether a place names a data set of the hub."""
    return str(place).startswith(HUB)


def open_data_set(place: str) -> tuple[list[str], Iterator[Mapping[str, Any]]]:
    """The columns of a data set, and its entries; an image is {"bytes": .., "path": ..}.

    Args:
        place: hub:OWNER/NAME or hub:FOLDER, perhaps with :SPLIT.

    Raises:
        UsageError: If there is no such data set or split, it cannot be accessed, or `datasets` is not installed.
        HubUnavailableError: If it is not in the cache and the hub does not answer.
    """
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"{place} needs datasets; pip install datasets") from error
    name, _, split = place.removeprefix(HUB).partition(":")
    if not name:
        raise UsageError(f"{place}: expected {HUB}OWNER/NAME, or {HUB}OWNER/NAME:SPLIT")
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        table: Any = datasets.load_dataset(name, split=split or DEFAULT_SPLIT)
    except Exception as error:  # a connection, a refusal, a split, a broken file: each from another library
        raise _explained(place, error) from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            table = table.cast_column(column, datasets.List(datasets.Image(decode=False)))
    return list(table.column_names), iter(table)


def _explained(place: str, error: Exception) -> UsageError | HubUnavailableError:
    """What went wrong, in one line."""
    why = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return UsageError(
            f"{place}: no folder here, and no data set of the hub that you have access to; one that asks for a token "
            f"needs `hf auth login`: {why}"
        )
    if isinstance(error, OSError):
        return HubUnavailableError(
            f"{place} is not in the cache, and the hub gave no answer ({type(error).__name__}): try again where there "
            "is a network, or give the path of a copy"
        )
    return UsageError(f"{place} cannot be read: {why}")
