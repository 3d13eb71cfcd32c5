"""What a value must be: in words for the message, and as a test. Knows nothing of what values mean."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

MAX_SEED = 2**63 - 1
MAX_CANDIDATES = 10_000_000
MAX_STEPS = 100_000
MAX_SIDE = 32_768  # pixels


Test = Callable[[object], bool]


@dataclass(frozen=True, slots=True)
class Rule:
    """What a value must be: in words, and as a test."""

    expected: str
    holds: Test


def whole(low: int, high: int) -> Rule:
    """A whole number of a range, both ends included."""
    return Rule(f"a whole number from {low} to {high}", lambda v: type(v) is int and low <= v <= high)


def number(low: float, *, above: bool = False) -> Rule:
    """A finite number from `low` on, or above it."""

    def holds(value: object) -> bool:
        if type(value) not in (int, float):
            return False
        found = cast("float", value)
        return abs(found) <= sys.float_info.max and (found > low if above else found >= low)

    return Rule(f"a number above {low:g}" if above else f"a number from {low:g}", holds)


def or_none(rule: Rule) -> Rule:
    """What another rule allows, or None for what is not asked for."""
    return Rule(rule.expected, lambda v: v is None or rule.holds(v))


def _texts(value: object) -> bool:
    return isinstance(value, tuple) and all(map(_is_text, cast("tuple[object, ...]", value)))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value and _encodes(value)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _rises(value: object) -> bool:
    if not isinstance(value, tuple):
        return False
    numbers = cast("tuple[Any, ...]", value)
    return all(type(number) is int for number in numbers) and all(a < b for a, b in pairwise((0, *numbers)))


TEXT = Rule("text in UTF-8 without NUL characters", _is_text)
PROMPT = Rule("text that says what the image should show", lambda v: _is_text(v) and bool(str(v).strip()))
FLAG = Rule("true or false", lambda v: type(v) is bool)
TEXTS = Rule("a list of texts", _texts)
RISING = Rule("a list of rising whole numbers from 1", _rises)
MAPPING = Rule("a table of names and values", lambda v: isinstance(v, Mapping))
COUNT = whole(1, MAX_CANDIDATES)
STEPS = whole(1, MAX_STEPS)
SEED = whole(0, MAX_SEED)
SIDE = Rule(
    f"a multiple of 8 pixels from 8 to {MAX_SIDE}", lambda v: type(v) is int and 8 <= v <= MAX_SIDE and v % 8 == 0
)
GUIDANCE = number(0)
ETA = Rule("a number from 0 to 1", lambda v: GUIDANCE.holds(v) and float(str(v)) <= 1)
SPACING = Rule("a number above 0, at most 4", lambda v: number(0, above=True).holds(v) and float(str(v)) <= 4)
CONFIDENCE = Rule("a probability between 0 and 1", lambda v: isinstance(v, float) and 0 < v < 1)  # NaN compares false


def key(rule: Rule, default: Any = None) -> Any:
    """A field of `RunConfig`: what it must be, and what a run.json without it gives."""
    return field(default=default, metadata={"rule": rule})
