"""JSON objects as text: what every file of a run folder has in common. Knows nothing of their keys."""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn, cast

Record = dict[str, Any]
"""A JSON object."""


def encoded(record: Record) -> bytes:
    """An object as a file: keys sorted, so that equal objects give equal bytes."""
    return json.dumps(record, sort_keys=True, indent=2, allow_nan=False).encode() + b"\n"


def loads(text: bytes) -> Record:
    """A JSON object; every way of not being one is a ValueError."""
    try:
        value: Any = json.loads(text.decode(), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("a JSON object was expected")
    return cast("Record", value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def is_score(value: object) -> bool:
    """Whether a value is a finite number or null."""
    return value is None or (type(value) in (int, float) and abs(cast("float", value)) <= sys.float_info.max)


def are_scores(value: object) -> bool:
    """Whether a value is an object of finite numbers and nulls."""
    return isinstance(value, dict) and all(map(is_score, cast("Record", value).values()))


def is_whole(value: object) -> bool:
    """Whether a value is a whole number from 0 on that fits 64 bits."""
    return type(value) is int and 0 <= value < 2**63


def is_sha256(value: object) -> bool:
    """Whether a value is 64 lower-case hexadecimal digits."""
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")


def is_text(value: object) -> bool:
    """Whether a value is text."""
    return isinstance(value, str)
