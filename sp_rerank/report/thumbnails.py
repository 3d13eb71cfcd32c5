"""Small copies of a run's large images, for pages that show all of them at once. Knows a run folder and Pillow."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sp_rerank.errors import StorageError
from sp_rerank.run.folder import RunDir
from sp_rerank.run.layout import THUMBNAILS, entries, inside
from sp_rerank.run.records import Row
from sp_rerank.storage import atomic
from sp_rerank.storage.images import to_webp

SIDE = 384  # pixels: three times what the sheet shows, for sharp screens
AT_ONCE = 32  # images in memory


def thumbnail_name(row: Row) -> str:
    """Path of a candidate's thumbnail from the run folder; another image has another name."""
    return f"{THUMBNAILS}/{row.index:05d}-{row.sha256[:8]}.webp"


def write_thumbnails(run: RunDir, sizes: Mapping[int, tuple[int, int]]) -> None:
    """Write the thumbnails that are missing into the run folder, and remove those of images that are no longer there.

    Args:
        run: Complete or not. An image that is missing or changed gets none.
        sizes: Width and height in pixels of the images by index; the large ones get a thumbnail.

    Raises:
        StorageError: If one cannot be written.
    """
    wanted = {index: thumbnail_name(run.rows[index]) for index, size in sizes.items() if max(size) > SIDE}
    there = {f"{THUMBNAILS}/{path.name}": path for path in entries(run.path, THUMBNAILS)}
    for name in there.keys() - set(wanted.values()):
        with atomic.storage_errors(there[name]):
            there[name].unlink()
    missing = {index: name for index, name in wanted.items() if name not in there}
    if not missing:
        return
    folder = inside(run.path, THUMBNAILS)
    with atomic.storage_errors(folder):
        folder.mkdir(exist_ok=True)
    indices = list(missing)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(indices), AT_ONCE):
            part = indices[start : start + AT_ONCE]
            made = zip(part, pool.map(lambda index: _thumbnail(run, index), part), strict=True)
            files: dict[Path, bytes] = {run.path / missing[index]: webp for index, webp in made if webp}
            atomic.write_all(files)


def _thumbnail(run: RunDir, index: int) -> bytes | None:
    """A thumbnail; None of an image that is not as it was committed."""
    try:
        return to_webp(run.read_image(index), SIDE)
    except StorageError:
        return None
