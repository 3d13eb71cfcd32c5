"""Image files, read by threads ahead of whoever takes them: in order, and no more pixels at once than a bound.

Knows files and threads; knows nothing of what the images are for.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING

from sp_rerank.errors import UnreadableImageError
from sp_rerank.storage import images

if TYPE_CHECKING:
    from PIL import Image

MOST_READERS = 16


def reader_count() -> int:
    """Threads that are worth having: one for each CPU that this process may use, up to MOST_READERS."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_READERS)


def read_ahead(
    paths: Sequence[Path], *, files: int, pixels: int, largest: int, readers: int
) -> Generator[Image.Image | UnreadableImageError | None]:
    """Open image files, as `images.open_image` does, while the images before them are looked at.

    Args:
        paths: Of the files.
        files: How many of them are open or being read, at most, before they are taken.
        pixels: How many pixels these have together, at most.
        largest: Pixels of an image that is read ahead, at most; no more than `pixels`.
        readers: Number of threads.

    Yields:
        In the order of the paths an image; an error for one that cannot be read; None for one with more pixels than
        `largest`: whoever takes it opens it, and no other file is read until the next is asked for.
    """
    room = _Room(pixels)

    def read(place: int, path: Path) -> list[Image.Image | UnreadableImageError | int | None]:
        count = images.pixels_of(path)
        taken = min(count, pixels) if count <= largest else pixels
        if not room.take(place, taken) or count > largest:
            return [taken, None]
        try:
            return [taken, images.open_image(path)]
        except UnreadableImageError as error:
            return [taken, error]

    rest, pool = iter(enumerate(paths)), ThreadPoolExecutor(max(1, min(readers, len(paths))), "read")
    try:
        waiting = deque(pool.submit(read, *entry) for entry in islice(rest, files))
        while waiting:
            outcome = waiting.popleft().result()
            yield outcome.pop()  # pyright: ignore[reportReturnType]  # and nothing here holds the image any more
            room.give_back(outcome.pop())  # pyright: ignore[reportArgumentType]
            waiting.extend(pool.submit(read, *entry) for entry in islice(rest, 1))
    finally:
        room.close()
        pool.shutdown(cancel_futures=True)


class _Room:
    """Room for pixels, given out in the order of the files, so that no file waits for one behind it.

    Args:
        most: Pixels that there is room for.
    """

    def __init__(self, most: int) -> None:
        self._most, self._held, self._turn, self._closed = most, 0, 0, False
        self._changed = Condition()

    def take(self, place: int, pixels: int) -> bool:
        """Wait for the turn of a place and for room; False if there will be none any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (place == self._turn and self._held + pixels <= self._most))
            self._held += pixels
            self._turn += 1
            self._changed.notify_all()
            return not self._closed

    def give_back(self, pixels: int) -> None:
        """Make room again."""
        with self._changed:
            self._held -= pixels
            self._changed.notify_all()

    def close(self) -> None:
        """Let no thread wait any longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
