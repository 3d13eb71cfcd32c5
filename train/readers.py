"""Preferences out of files: JSON, JSON lines, CSV, parquet and the store of answers, read one prompt at a time.

A layout is recognized by its columns, not by a file's name. Knows files and tables; what their columns mean is in
`layouts`. Knows nothing of models, batches or scores.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from sp_rerank.choosing.export import COLUMNS, rows
from sp_rerank.choosing.store import AnswerStore
from sp_rerank.errors import UsageError
from sp_rerank.storage.atomic import storage_errors
from sp_rerank.train.hub_data import is_hub, open_data_set
from sp_rerank.train.layouts import LAYOUTS, Entry, ImageFinder, Layout
from sp_rerank.train.preferences import PreferenceGroup

log = logging.getLogger(__name__)

STORE = ".sqlite"  # of the answers that `sp-rerank label` keeps
_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", STORE)


def read_preferences(
    place: str | Path, images: str | Path | None = None, layout: str | None = None
) -> Iterator[PreferenceGroup]:
    """Groups of a data set, one at a time, in its order; docs/preference-data.md has the layouts.

    Groups of fewer than two images and entries of one's own without a label are left out, counted in a log warning.

    Args:
        place: a data file, or a folder that holds one (of Pick-a-Pic, the parquet files of one split); or a data set of
            the hub, hub:OWNER/NAME or hub:OWNER/NAME:SPLIT.
        images: the folder that image paths start from; by default that of the data file, or its train/ or test/. Of a
            store of answers, a folder to look for images in that are no longer where they were.
        layout: A name out of LAYOUTS; by default recognized by the columns.

    Raises:
        UsageError: at once if the data are of no known layout; at a group that is not as expected or whose image is
            not there; at the end if no pair had a better image, or the labels were all the same.
        StorageError: if a file cannot be read.
        HubUnavailableError: if a data set of the hub is not in the cache and the hub does not answer.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(f"expected a layout out of {', '.join(LAYOUTS)}, got {layout!r}")
    folder = None if images is None else Path(images)
    if folder is not None and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; the one that image paths start from was expected")
    files = _data_files(Path(place))
    columns, entries = _open_table(files[0], folder)
    known = LAYOUTS[layout or _tell_layout(files[0], columns)]
    _check_columns(files[0], columns, known)
    tables = chain([(files[0], entries)], ((file, _open_table(file, folder)[1]) for file in files[1:]))
    groups = (group for file, rows in tables for group in _groups(file, rows, known, folder))
    return _checked(groups, str(place), known)


def _data_files(place: Path) -> list[Path]:
    """The data file, or those of a folder: one, or the tables that hold their images."""
    if is_hub(place) or place.is_file():
        return [place]
    if not place.is_dir():
        raise UsageError(f"{place} is not there; a file of preferences or a folder with one was expected")
    with storage_errors(place):
        files = sorted(
            path for path in place.iterdir() if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
        )
    if not files:
        raise UsageError(f"{place} holds no data file; one ending in {', '.join(_SUFFIXES)} was expected")
    if len(files) > 1 and not all(
        path.suffix.lower() == ".parquet" and "jpg_0" in _open_table(path)[0] for path in files
    ):
        raise UsageError(
            f"{place} holds several data files: {_list(path.name for path in files)}; name the one to read"
        )
    return files


def _tell_layout(file: Path, columns: Sequence[str]) -> str:
    for name, known in LAYOUTS.items():
        if set(columns).issuperset(known.columns):
            return name
    expected = "; ".join(f"{name}: {', '.join(known.columns)}" for name, known in LAYOUTS.items())
    raise UsageError(f"{file} has the columns {_list(columns)}; expected those of one layout ({expected})")


def _check_columns(file: Path, columns: Iterable[str], layout: Layout) -> None:
    columns, expected = list(columns), ", ".join(layout.columns)
    if missing := [name for name in layout.columns if name not in columns]:
        raise UsageError(f"{file} has no column {_list(missing)}; expected {expected}, got {_list(columns)}")
    if None in columns:  # as the reader of CSV calls what is behind the last column
        raise UsageError(
            f"{file} has a row of more cells than columns; expected {expected} and what else its head names"
        )


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(map(str, names))[:20]) or "none"


def _open_table(file: Path, folder: Path | None = None) -> tuple[list[str], Iterator[Entry]]:
    """The columns of a data file and its entries; a large table is read as it is used."""
    if is_hub(file):
        return open_data_set(str(file))
    suffix = file.suffix.lower()
    if suffix == STORE:
        with AnswerStore(file, read_only=True) as store:
            return list(COLUMNS), iter(list(rows(store, images=folder)))
    if suffix == ".parquet":
        table = _parquet(file)
        return table.schema_arrow.names, (row for batch in table.iter_batches(64) for row in batch.to_pylist())
    if suffix not in _SUFFIXES:
        raise UsageError(f"{file}: expected a file ending in {', '.join(_SUFFIXES)}")
    with storage_errors(file):
        text = file.read_bytes()
    try:
        entries = _parse(suffix, text.decode("utf-8-sig"))
    except (ValueError, RecursionError, csv.Error) as error:
        raise UsageError(f"{file} is no {suffix[1:]} file: {error}") from error
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f"{file}: expected entries with a prompt, images and a label or ranks, and found none such")
    return list(entries[0]), iter(entries)


def _parse(suffix: str, text: str) -> Any:
    if suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    if suffix == ".jsonl":
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    return json.loads(text)


def _parquet(file: Path) -> Any:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UsageError(f"{file}: reading parquet needs pyarrow: pip install sp-rerank[train]") from error
    try:
        return ParquetFile(file)
    except (ArrowException, OSError) as error:
        raise UsageError(f"{file} is no parquet file: {error}") from error


def _groups(file: Path, entries: Iterable[Entry], layout: Layout, folder: Path | None) -> Iterator[PreferenceGroup]:
    find = ImageFinder(file, folder)
    checked = _checked_entries(file, entries, layout)
    for number, entry in enumerate(_gathered(checked, layout.by) if layout.by else checked, start=1):
        find.start(number)
        try:
            group = layout.group(entry, find)
        except UsageError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"{file}: group {number} is not as expected: {error}; correct it, or take it out"
            ) from error
        if group is not None:
            yield group


def _checked_entries(file: Path, entries: Iterable[Entry], layout: Layout) -> Iterator[Entry]:
    unanswered = 0
    for entry in entries:
        _check_columns(file, entry, layout)
        if layout.label and entry[layout.label] in (None, ""):
            unanswered += 1
        else:
            yield entry
    if unanswered:
        log.warning("%s: %d entries without a label left out", file, unanswered)


def _gathered(entries: Iterable[Entry], by: str) -> Iterator[dict[str, list[Any]]]:
    """Entries with the same value in a column as one entry of lists, in the order of the first of each."""
    together: dict[Any, list[Entry]] = {}
    for entry in entries:
        together.setdefault(entry[by], []).append(entry)
    for several in together.values():
        yield {column: [entry[column] for entry in several] for column in several[0]}


def _checked(groups: Iterable[PreferenceGroup], place: str, layout: Layout) -> Iterator[PreferenceGroup]:
    """The groups that compare something; then an error if all of them together say nothing."""
    labels: Counter[float] = Counter()
    too_small, ranked = 0, False
    for group in groups:
        if len(group.images) < 2:
            too_small += 1
            continue
        labels.update(pair.label for pair in group.pairs)
        ranked = ranked or group.ranks is not None
        yield group
    if too_small:
        log.warning("%s: %d groups of fewer than two images left out: they compare nothing", place, too_small)
    if not labels[0] and not labels[1]:
        found = f"{labels[0.5]} ties" if labels[0.5] else "no pair"
        raise UsageError(f"{place} holds {found} and no pair with a better image; nothing can be learnt or measured")
    if len(+labels) == 1 and not ranked and not layout.one_sided:
        raise UsageError(
            f"{place}: the label of every pair is {next(iter(+labels)):g}; if the same column always holds the better "
            "image, name the columns better and worse and leave the label out"
        )
