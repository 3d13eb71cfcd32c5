"""Damaged files: every key of a JSON document with every kind of wrong value, missing, huge, nested too deeply."""

import copy
import json
from collections.abc import Iterator
from typing import Any

WRONG = (
    None, True, -1, 0, 0.5, 10**400, 1e308, float("nan"), float("inf"), "", "../../x", "\ud800", "a\nb", [], [1], {},
    {"a": 1},
)  # fmt: skip
TEXTS = (
    "", " ", "{", "[" * 100_000, '{"a":' * 100_000, "null", "7", "9" * 5_000, '"x"', "\xff", "\x00" * 100,
)  # fmt: skip


def mutations(document: Any, depth: int = 99) -> Iterator[bytes]:
    """The document with one value wrong or one key missing at a time, then texts that are no document at all."""
    for path in (path for path in _paths(document) if len(path) <= depth):
        for value in WRONG:
            yield _dumped(_with(document, path, value))
        yield _dumped(_without(document, path))
        deep = _dumped(_with(document, path, "DEEP")).decode()
        yield deep.replace('"DEEP"', "[" * 5_000 + "]" * 5_000).encode()
    yield from (text.encode("latin-1") for text in TEXTS)


def _paths(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inside = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in inside:
        yield (*path, key)
        yield from _paths(value, (*path, key))


def _parent(document: Any, path: tuple[Any, ...]) -> tuple[Any, Any]:
    changed = copy.deepcopy(document)
    place = changed
    for key in path[:-1]:
        place = place[key]
    return changed, place


def _with(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed, place = _parent(document, path)
    place[path[-1]] = value
    return changed


def _without(document: Any, path: tuple[Any, ...]) -> Any:
    changed, place = _parent(document, path)
    del place[path[-1]]
    return changed


def _dumped(document: Any) -> bytes:
    return json.dumps(document).encode()
