"""Images as the page gets them: pixels only. What else a file holds, such as a seed, a prompt or a name, stays here."""

from __future__ import annotations

import io
import secrets
from collections import OrderedDict

from sp_rerank.choosing.contest import Item
from sp_rerank.errors import UnreadableImageError
from sp_rerank.storage import atomic, images

KEPT = 48  # pictures in memory: those of the questions that wait, and some before them
FASTEST = 1  # of PNG's compressions: the page is on the same machine


class Pictures:
    """Gives images random names, and holds those that will be asked for soon.

    For one thread at a time.
    """

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._items: dict[str, Item] = {}
        self._made: OrderedDict[str, bytes] = OrderedDict()

    def name(self, item: Item) -> str:
        """The name of an image in this session; says nothing about it."""
        if item.sha256 not in self._names:
            self._names[item.sha256] = secrets.token_urlsafe(12)
            self._items[self._names[item.sha256]] = item
        return self._names[item.sha256]

    def prepare(self, item: Item) -> None:
        """Read an image, so that it is there when it is asked for.

        Raises:
            StorageError: If its file is gone or was changed since the session began.
        """
        self.png(self.name(item))

    def png(self, name: str) -> bytes | None:
        """The picture of a name as a PNG file; None where no image has this name.

        Raises:
            StorageError: If its file is gone or was changed since the session began.
        """
        item = self._items.get(name)
        if item is None:
            return None
        if name not in self._made:
            self._made[name] = _bare_png(item)
            while len(self._made) > KEPT:
                self._made.popitem(last=False)
        self._made.move_to_end(name)
        return self._made[name]


def _bare_png(item: Item) -> bytes:
    with atomic.storage_errors(item.path):
        content = item.path.read_bytes()
    if atomic.sha256_of(content) != item.sha256:
        raise UnreadableImageError(f"{item.path}: changed since it was first shown")
    image = images.read_image(lambda: io.BytesIO(content), str(item.path))
    image.info.clear()
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=FASTEST)
    return file.getvalue()
