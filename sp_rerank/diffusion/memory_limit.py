"""How many images fit into memory at once, as far as it was found out. Knows nothing of what makes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class MemoryLimit:
    """How many images are known to fit into memory at once; kept by whoever makes several runs with one pipeline.

    Attributes:
        images: None before memory ran out.
    """

    images: int | None = None


def pieces(indices: list[int], size: int) -> list[list[int]]:
    """Indices in pieces of at most a size, in their order."""
    return [indices[i : i + size] for i in range(0, len(indices), size)]
