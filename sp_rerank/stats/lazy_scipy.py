"""scipy, imported where it is first needed: two seconds of a CPU that a command without statistics need not take."""

from importlib import import_module
from typing import Any


def scipy(module: str) -> Any:
    """A module of scipy, such as scipy("stats"); untyped, for scipy ships no types."""
    return import_module(f"scipy.{module}")
