"""Which files are images, and what was left out. Knows folders, names and first bytes; reads no picture."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sp_rerank.errors import UsageError
from sp_rerank.storage import atomic

SUFFIXES = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif",
})  # fmt: skip
"""Of the formats that are read; a file of another name is looked into."""

_FIRST_BYTES = re.compile(
    rb"\x89PNG|\xff\xd8\xff|RIFF....WEBP|BM....\0\0\0\0|GIF8|II[*+]\0|MM\0[*+]|....ftypavi[fs]", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something in a folder that is not taken for an image.

    Attributes:
        path: Where it is.
        why: "folder", "hidden", "broken link", "not a file" or "no image".
    """

    path: Path
    why: str


@dataclass(frozen=True, slots=True)
class FoundImages:
    """What a search for image files found.

    Attributes:
        files: In the order of the places, and in each folder "2.png" before "10.png"; none twice.
        left_out: What else was in the folders.
    """

    files: list[Path]
    left_out: list[LeftOut]


def find_images(places: Sequence[str | Path], *, recursive: bool = False) -> FoundImages:
    """The image files among files and in folders.

    In a folder an image is known by its suffix or, where that says nothing, by its first bytes. A file that is named
    itself is taken whatever it is. Links to files are followed, links to folders are not.

    Args:
        places: Files and folders.
        recursive: Whether to look into the folders of folders.

    Raises:
        UsageError: if there is no such file or folder.
        StorageError: if a folder cannot be read.
    """
    files: list[Path] = []
    left_out: list[LeftOut] = []
    for place in map(Path, places):
        if not place.exists():
            raise UsageError(f"{place}: expected an image file or a folder of images, found none of this name")
        entries = _entries(place, recursive) if place.is_dir() else [(place, "")]
        for path, why in entries:
            if why:
                left_out.append(LeftOut(path, why))
            else:
                files.append(path)
    return FoundImages(list(dict.fromkeys(files)), left_out)


def _entries(folder: Path, recursive: bool) -> Iterator[tuple[Path, str]]:
    """What is in a folder, each with why it is left out, "" for an image."""
    with atomic.storage_errors(folder):
        paths = sorted(folder.iterdir(), key=_natural)
    for path in paths:
        why = _why_not(path)
        if why == "folder" and recursive and not path.is_symlink():
            yield from _entries(path, recursive)
        else:
            yield path, why


def _why_not(path: Path) -> str:
    """Why a path is left out; "" for an image."""
    if path.name.startswith("."):
        return "hidden"
    if path.is_dir():
        return "folder"
    if not path.exists():
        return "broken link"
    if not path.is_file():
        return "not a file"  # nothing is read of a pipe or a device
    return "" if path.suffix.lower() in SUFFIXES or _begins_as_image(path) else "no image"


def _begins_as_image(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _FIRST_BYTES.match(file.read(16)) is not None
    except OSError:
        return False


def _natural(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", path.name.casefold())  # text and digits by turns: like is compared with like
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], os.fspath(path)
