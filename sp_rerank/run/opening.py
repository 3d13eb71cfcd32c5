"""What is settled before a run folder is written: its lock, whether it is the same run, room on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sp_rerank.config import RunConfig
from sp_rerank.errors import FolderBusyError, StorageError, UsageError
from sp_rerank.run.folder import read_config
from sp_rerank.run.layout import LOCK
from sp_rerank.storage import atomic


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Hold the folder's lock; the operating system lets go of it when the process dies."""
    lock = FileLock(folder / LOCK)
    try:
        with atomic.storage_errors(folder / LOCK):
            _acquire(lock, folder)
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path) -> None:
    try:
        lock.acquire(blocking=False)
    except Timeout:  # an OSError too, but not one of storage
        busy = FolderBusyError(
            f"{folder}: another process is writing this run there; wait for it, or choose another folder with --out"
        )
        raise busy from None


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
        raise UsageError(
            f"{path} holds another run: {'; '.join(different[:3])}{more}; choose another folder with --out"
        )
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
            "free some space there, or choose another folder with --out"
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
