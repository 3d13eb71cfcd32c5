"""The image file of a candidate as a page may show it. Knows a run folder and a PNG file's head; decodes nothing."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from sp_rerank.errors import StorageError
from sp_rerank.report.thumbnails import SIDE, thumbnail_name
from sp_rerank.run.folder import RunDir
from sp_rerank.run.records import Row
from sp_rerank.storage.images import to_webp

EMBEDDED = 768  # pixels; of the sides of an image that a page holds itself, at most
SMALL = 128  # pixels; images up to this side are shown large with hard edges

PROBLEMS = {
    "altered": "changed since it was made, the SHA-256 differs",
    "missing": "the file is missing",
    "outside": "the path leads out of the run folder and is not followed",
}
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Picture:
    """The file of a candidate, as far as it can be shown.

    Attributes:
        file: Path from the page; None where there is nothing to show.
        small: Path of its thumbnail, or of the file itself where there is none.
        width: In pixels; 1 where it is not known.
        height: In pixels; 1 where it is not known.
        problem: What is wrong with it, a key of `PROBLEMS`; None if it is as it was committed.
    """

    file: str | None
    small: str | None
    width: int
    height: int
    problem: str | None


def picture_of(run: RunDir, row: Row) -> Picture:
    """The image of a row: whether it may be shown, its size by its header, whether it is what was committed."""
    try:
        path = run.image(row.index)
        if not path.is_file():
            return Picture(None, None, 1, 1, "missing")
        png = path.read_bytes()
    except StorageError:
        return Picture(None, None, 1, 1, "outside")
    except OSError:
        return Picture(None, None, 1, 1, "missing")
    if hashlib.sha256(png).hexdigest() != row.sha256:
        return Picture(row.file, row.file, 1, 1, "altered")
    width, height = _size(png)
    small = thumbnail_name(row) if max(width, height) > SIDE else ""
    shown = small if small and (run.path / small).is_file() else row.file
    return Picture(row.file, shown, width, height, None)


def embedded_picture(run: RunDir, picture: Picture, index: int) -> Picture:
    """A picture that holds its image as a data URL; one of a file that is not as it was committed shows nothing."""
    if not picture.file or picture.problem:
        return replace(picture, file=None, small=None)
    large = max(picture.width, picture.height) > SMALL
    image = to_webp(run.read_image(index), EMBEDDED) if large else run.image_bytes(index)
    url = f"data:image/{'webp' if large else 'png'};base64,{base64.b64encode(image).decode()}"
    return replace(picture, file=url, small=url)


def sizes_of(run: RunDir) -> dict[int, tuple[int, int]]:
    """Width and height in pixels of the images whose files tell it, by index."""
    sizes: dict[int, tuple[int, int]] = {}
    for index in run.rows:
        with suppress(OSError), run.image(index).open("rb") as file:
            sizes[index] = _size(file.read(32))
    return sizes


def _size(head: bytes) -> tuple[int, int]:
    """Width and height as the head of a PNG file tells them; 1 and 1 where it does not."""
    return struct.unpack(">II", head[16:24]) if head.startswith(_PNG) and len(head) > 24 else (1, 1)


def is_small(pictures: Mapping[int, Picture]) -> bool:
    """Whether no image of the run is larger than SMALL, so that the page may enlarge them with hard edges."""
    known = [
        max(picture.width, picture.height) for picture in pictures.values() if picture.file and not picture.problem
    ]
    return bool(known) and max(known) <= SMALL
