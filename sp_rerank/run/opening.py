"""What is checked before a run folder is written: whether it is the same run, and room on the disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from sp_rerank.config import RunConfig
from sp_rerank.errors import StorageError, UsageError
from sp_rerank.run.folder import read_config
from sp_rerank.storage import atomic


def check_same_run(path: Path, asked: RunConfig) -> int | None:
    """The schema of the run in a folder, None where there is none.

    Raises:
        UsageError: Naming up to three differences, if the folder holds another run than the one asked for.
    """
    found = read_config(path)
    if found is None:
        return None
    held, schema = found
    different = held.differences(asked)
    if different:
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise UsageError(f"{path} holds another run: {'; '.join(different[:3])}{more}; choose another folder")
    return schema


def check_space(path: Path, needed: int) -> None:
    """Check that the disk has room for so many bytes.

    Raises:
        StorageError: If it has not.
    """
    with atomic.storage_errors(path):
        free = shutil.disk_usage(path).free
    if free < needed:
        raise StorageError(
            f"{path}: the images need about {_megabytes(needed)}, {_megabytes(free)} are free; "
            "free some space there, or choose another folder"
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
