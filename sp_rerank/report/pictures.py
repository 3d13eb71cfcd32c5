"""The image file of a candidate as a page may show it. Knows a run folder and a PNG file's head; decodes nothing."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from sp_rerank.errors import StorageError
from sp_rerank.run.folder import RunDir
from sp_rerank.run.records import Row

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
        width: In pixels; 1 where it is not known.
        height: In pixels; 1 where it is not known.
        problem: What is wrong with it, a key of `PROBLEMS`; None if it is as it was committed.
    """

    file: str | None
    width: int
    height: int
    problem: str | None


def picture_of(run: RunDir, row: Row) -> Picture:
    """The image of a row: whether it may be shown, its size by its header, whether it is what was committed."""
    try:
        path = run.image(row.index)
        if not path.is_file():
            return Picture(None, 1, 1, "missing")
        png = path.read_bytes()
    except StorageError:
        return Picture(None, 1, 1, "outside")
    except OSError:
        return Picture(None, 1, 1, "missing")
    if hashlib.sha256(png).hexdigest() != row.sha256:
        return Picture(row.file, 1, 1, "altered")
    width, height = struct.unpack(">II", png[16:24]) if png.startswith(_PNG) and len(png) > 24 else (1, 1)
    return Picture(row.file, width, height, None)


def is_small(pictures: Mapping[int, Picture]) -> bool:
    """Whether no image of the run is larger than SMALL, so that the page may enlarge them with hard edges."""
    known = [
        max(picture.width, picture.height) for picture in pictures.values() if picture.file and not picture.problem
    ]
    return bool(known) and max(known) <= SMALL
