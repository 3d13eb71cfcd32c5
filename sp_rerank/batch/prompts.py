"""Lists of prompts out of files: text, CSV, TSV, JSON, JSON lines, parquet, standard input.

A row is checked where it is read, so that a list of 10,000 is refused before a model is loaded. Knows what a column
means; knows no model and nothing of what becomes of a row.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from sp_rerank.config import GenerationOptions
from sp_rerank.config.rules import PROMPT, Rule
from sp_rerank.errors import UsageError
from sp_rerank.storage import atomic, hub

STDIN = "-"

HUB = "hf://datasets/"
"""Begins the place of a list in a data set of the hub: hf://datasets/OWNER/NAME/FILE, with NAME@REVISION for another
than the newest."""

PROMPT_COLUMNS = ("prompt", "Prompt", "caption", "text", "TEXT")
"""What the prompt's column may be called; the first that is there is taken."""

OVERRIDES = ("seed", "n", "negative_prompt", "height", "width", "steps")
"""Columns that set an option of `generate` for their row alone."""

ID = Rule("text of 1 to 500 characters", lambda v: PROMPT.holds(v) and len(str(v)) <= 500)

_RULES: dict[str, Rule] = {entry.name: entry.metadata["rule"] for entry in fields(GenerationOptions)}


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt of a list, with what its row sets for it alone.

    Attributes:
        id: What it is known by; different for every row of a list.
        prompt: What the images should show.
        seed: Seed of its first candidate; this and the following are None where the row does not say.
        n: Number of its candidates.
        negative_prompt: What its images should not show.
        height: In pixels.
        width: In pixels.
        steps: Number of scheduler steps.
        source: The row as it came, as a JSON object: the columns that mean nothing here are in it unchanged.
    """

    id: str
    prompt: str
    seed: int | None = None
    n: int | None = None
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    steps: int | None = None
    source: str = "{}"

    @property
    def overrides(self) -> dict[str, Any]:
        """The options of `generate` that the row sets."""
        return {name: value for name in OVERRIDES if (value := getattr(self, name)) is not None}

    @property
    def meta(self) -> dict[str, Any]:
        """The columns that mean nothing here."""
        row: dict[str, Any] = json.loads(self.source)
        taken = next((name for name in PROMPT_COLUMNS if name in row), "")
        return {name: value for name, value in row.items() if name not in (taken, "id", *OVERRIDES)}


@dataclass(frozen=True, slots=True)
class _Found:
    """A row before it is checked: where it stands, for messages, and its columns."""

    place: str
    columns: Mapping[str, Any]


def rows_of(prompts: Iterable[str]) -> Iterator[PromptRow]:
    """Rows of prompts that are in memory; their ids are their numbers from 0 on.

    Raises:
        UsageError: Naming a prompt that is empty or no text.
    """
    for number, prompt in enumerate(prompts):
        yield _row(_Found(f"prompt {number}", {"prompt": prompt}), str(number))


def read_prompts(*places: str | Path) -> Iterator[PromptRow]:
    """The rows of one list of prompts or several, in their order, each checked as it comes.

    The prompt is in the column `prompt` (or Prompt, caption, text, TEXT). The columns id, seed, n, negative_prompt,
    height, width and steps are read, all others are carried along. Where there is no id, the row's number from 0 on is
    taken; of several files with the file's name before it ("anime-0"), which also becomes the column `file`.

    Args:
        *places: Files by their suffix: .txt (a line a prompt), .csv, .tsv (tabs, no quoting), .json (a list of texts
            or of objects, or an object of prompts by id), .jsonl, .parquet; "-" is standard input: lines, or JSON; a
            file of a data set of the hub is hf://datasets/OWNER/NAME/FILE.

    Raises:
        UsageError: Naming file and row, if a row cannot be used, two have the same id, or there is no row.
        StorageError: If a file cannot be read.
        HubUnavailableError: If a file of the hub is not in the cache and the hub does not answer.
    """
    seen: dict[str, int] = {}
    for place in places:
        name = Path(place).stem if len(places) > 1 else ""
        for number, found in enumerate(_read(str(place))):
            if name:
                found = _Found(found.place, {**found.columns, "file": found.columns.get("file", name)})
            row = _row(found, f"{name}-{number}" if name else str(number))
            if row.id in seen:
                raise UsageError(
                    f"{found.place}: the id {brief(row.id)} is that of row {seen[row.id]} too; give each its own"
                )
            seen[row.id] = len(seen)
            yield row
    if not seen:
        raise UsageError(f"{', '.join(map(str, places)) or 'the list'} holds no prompt; expected one or more")


def _row(found: _Found, default_id: str) -> PromptRow:
    """A row that is checked.

    Raises:
        UsageError: Naming its place and the column.
    """
    columns = found.columns
    name = next((name for name in PROMPT_COLUMNS if name in columns), None)
    if name is None:
        raise UsageError(
            f"{found.place}: expected a column {', '.join(PROMPT_COLUMNS[:-1])} or {PROMPT_COLUMNS[-1]}, "
            f"got {', '.join(map(str, columns)) or 'none'}"
        )
    _check(found.place, name, columns[name], PROMPT)
    given = columns.get("id")
    row_id = default_id if given in (None, "") else str(given)
    _check(found.place, "id", row_id, ID)
    values: dict[str, Any] = {}
    for option in OVERRIDES:
        value = columns.get(option)
        if value is None or (value == "" and option != "negative_prompt"):
            continue
        values[option] = value if option == "negative_prompt" else _whole(value)
        _check(found.place, option, values[option], _RULES[option])
    source = json.dumps(columns, ensure_ascii=False, default=str)
    return PromptRow(row_id, columns[name], source=source, **values)


def _whole(value: Any) -> Any:
    """The number that a cell of text stands for; the value itself where it stands for none."""
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return value
    return value


def _check(place: str, name: str, value: object, rule: Rule) -> None:
    if not rule.holds(value):
        raise UsageError(f"{place}: {name} is {brief(value)}; expected {rule.expected}")


def _read(place: str) -> Iterator[_Found]:
    if place == STDIN:
        text = _decoded(sys.stdin.buffer.read(), "standard input")
        form = {"{": _from_json_lines, "[": _from_json}.get(text.lstrip()[:1], _from_lines)
        return form(text, "standard input")
    suffix = Path(place).suffix.lower()
    if suffix not in (*READERS, ".parquet"):
        raise UsageError(f"{place}: expected a list of prompts ending in {', '.join(READERS)} or .parquet")
    path = _from_hub(place) if place.startswith("hf://") else Path(place)
    if path.is_dir() or not path.exists():
        raise UsageError(f"{place}: expected a file with prompts, found {'a folder' if path.is_dir() else 'none'}")
    if suffix == ".parquet":
        return _from_parquet(path)
    with atomic.storage_errors(path):
        data = path.read_bytes()
    return READERS[suffix](_decoded(data, place), place)


def _from_hub(place: str) -> Path:
    """The local copy of a file of the hub."""
    owner, _, rest = place.removeprefix(HUB).partition("/")
    name, _, file = rest.partition("/")
    if not place.startswith(HUB) or not (owner and name and file):
        raise UsageError(f"{place}: expected {HUB}OWNER/NAME/FILE, a file with prompts in a data set of the hub")
    name, _, revision = name.partition("@")
    return hub.fetch_data_file(f"{owner}/{name}", file, revision or None)


def _decoded(data: bytes, name: str) -> str:
    """Text without a byte order mark.

    Raises:
        UsageError: Naming the line and the byte that is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{name}: line {line} is not UTF-8: byte 0x{data[error.start]:02x} at {error.start}; save it as UTF-8"
        ) from error


def _lines(text: str, name: str) -> Iterator[tuple[str, str]]:
    """(place, line) without empty lines at the end. Only the line feed ends one: U+2028 and its like are text."""
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        yield f"{name}: line {number}", line.removesuffix("\r")


def _from_lines(text: str, name: str) -> Iterator[_Found]:
    for place, line in _lines(text, name):
        yield _Found(place, {"prompt": line})


def _from_tsv(text: str, name: str) -> Iterator[_Found]:
    """Tabs and nothing else: a quotation mark is a part of the prompt, as PartiPrompts has it."""
    lines = _lines(text, name)
    header = next(lines, ("", ""))[1].split("\t")
    for place, line in lines:
        yield _Found(place, _joined(place, header, line.split("\t")))


def _from_csv(text: str, name: str) -> Iterator[_Found]:
    csv.field_size_limit(1 << 30)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        for cells in reader:
            place = f"{name}: line {reader.line_num}"
            if cells:
                yield _Found(place, _joined(place, header, cells))
    except csv.Error as error:
        raise UsageError(f"{name}: line {reader.line_num} is no CSV: {error}") from error


def _joined(place: str, header: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    if len(cells) > len(header) or len(set(header)) < len(header):
        raise UsageError(f"{place}: {len(cells)} cells under {len(header)} columns; expected one a column, each once")
    return dict(zip(header, [*cells, *[""] * (len(header) - len(cells))], strict=True))


def _loaded(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place} is no JSON: {error}") from error


def _from_json(text: str, name: str) -> Iterator[_Found]:
    value = _loaded(text, name)
    if isinstance(value, dict):
        entries = [
            {"id": key, **(entry if isinstance(entry, dict) else {"prompt": entry})} for key, entry in value.items()
        ]
    elif isinstance(value, list):
        entries = value
    else:
        raise UsageError(f"{name}: expected a list of prompts or an object of prompts by id, got {brief(value)}")
    for number, entry in enumerate(entries):
        yield _object(entry, f"{name}: row {number}")


def _from_json_lines(text: str, name: str) -> Iterator[_Found]:
    for place, line in _lines(text, name):
        yield _object(_loaded(line, place), place)


def _object(entry: Any, place: str) -> _Found:
    return _Found(place, entry if isinstance(entry, dict) else {"prompt": entry})


def _from_parquet(path: Path) -> Iterator[_Found]:
    from sp_rerank.batch.arrow import arrow

    pa, parquet = arrow()
    try:
        with atomic.storage_errors(path), parquet.ParquetFile(path) as file:
            names = [f.name for f in file.schema_arrow if not (pa.types.is_binary(f.type) or _is_image(pa, f.type))]
            number = 0
            for batch in file.iter_batches(10_000, columns=names):
                for entry in batch.to_pylist():
                    yield _Found(f"{path}: row {number}", entry)
                    number += 1
    except pa.ArrowInvalid as error:
        raise UsageError(f"{path} is no parquet file: {error}") from error


def _is_image(pa: Any, kind: Any) -> bool:
    """Whether a column holds images as `datasets` writes them; a list of prompts needs none of them."""
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


READERS = {
    ".txt": _from_lines,
    ".csv": _from_csv,
    ".tsv": _from_tsv,
    ".json": _from_json,
    ".jsonl": _from_json_lines,
}
