"""Where things lie in a run folder, and paths that stay inside it. Knows names; knows nothing of what files mean.

run.json            schema and configuration, without times: a resumed run's files are those of an uninterrupted one
candidates.jsonl    one line per candidate; the line is the commit
images/00057.png    written before its line
stages.jsonl        while a search goes on: a line per candidate and stage
drafts/00057.png    while a search goes on: what it saw of a candidate; 00057-2.png at its second look, and so on
top/01_seed57.png   copies of the best
grid.png            the contact sheet
index.html          the gallery
thumbs/             small copies of large images, for the gallery
result.json         how the run ended and what came out; written last: where it is, the run is done
"""

from __future__ import annotations

import os
import re
import unicodedata
from hashlib import sha256
from itertools import accumulate
from pathlib import Path

from sp_rerank.config import RunConfig
from sp_rerank.errors import StorageError
from sp_rerank.run.records import encode_config
from sp_rerank.storage import atomic

CONFIG = "run.json"
MANIFEST = "candidates.jsonl"
IMAGES = "images"
TOP = "top"
GRID = "grid.png"
RESULT = "result.json"
STAGES = "stages.jsonl"
DRAFTS = "drafts"
THUMBNAILS = "thumbs"
LOCK = atomic.LOCK

IMAGE_NAME = re.compile(r"[0-9]{5,}\.png")
TOP_NAME = re.compile(r"[0-9]{2,}_seed-?[0-9]+\.png")


def run_folder_name(config: RunConfig) -> str:
    """A folder name for a run: what is ASCII of its prompt, and a hash that tells configurations of one prompt apart.

    The number of candidates is not in it, for a run can grow. Nothing of the prompt but a-z, 0-9 and hyphens gets into
    the name, so it is one path component on every system.

    Returns:
        At most 49 characters, for example "a-lemon-on-the-beach-1f0c33ab".
    """
    ascii_only = unicodedata.normalize("NFKD", config.prompt).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_only)[:40].strip("-") or "run"
    return f"{slug}-{sha256(encode_config(config.of_any_size())).hexdigest()[:8]}"


def draft_name(index: int, look: int) -> str:
    """File name of what a search saw of a candidate at its first look, its second, and so on.

    Each look has a file of its own: the one before is what is committed until the line of the new one is.
    """
    return f"{index:05d}.png" if look == 1 else f"{index:05d}-{look}.png"


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, after following links to see that it is in the folder.

    Raises:
        StorageError: If it is not.
    """
    path = folder / name
    if not _may_lead_out(folder, name):
        return path  # the usual case, for a tenth of the time
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise StorageError(f"{path} leads out of the run folder; remove the link and restore the file")
    return path


def _may_lead_out(folder: Path, name: str) -> bool:
    """Whether a name from the folder on is anything but folders and a file, without a link among them."""
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts:
        return True
    below = accumulate(parts, os.path.join, initial=str(folder))
    next(below)  # the folder itself may be a link
    return any(map(os.path.islink, below))


def entries(folder: Path, name: str = ".") -> list[Path]:
    """What lies in a folder of the run, sorted; nothing where there is none."""
    inner = inside(folder, name)
    with atomic.storage_errors(inner):
        return sorted(inner.iterdir()) if inner.is_dir() else []


def leftovers(folder: Path) -> list[Path]:
    """Temporary files of writes that never ended."""
    paths = [path for name in (".", IMAGES, TOP, DRAFTS, THUMBNAILS) for path in entries(folder, name)]
    return [path for path in paths if path.name.endswith(atomic.TEMPORARY_SUFFIX)]


def bytes_of(path: Path) -> bytes:
    """What is in a file; nothing where there is none."""
    with atomic.storage_errors(path):
        return path.read_bytes() if path.is_file() else b""
