"""Bytes that are on the disk whole or not at all: a replaced file, a committed line, an error in one line.

Knows paths, bytes and fsync. Knows nothing of what the files mean.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from sp_rerank.errors import StorageError

TEMPORARY_SUFFIX = ".sp-rerank.part"
"""Of a file that is being written; peculiar enough that whatever bears it is ours to remove."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about `path` into a StorageError of one line that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        remedy = (
            "free some space there, then run the same command with --resume"
            if error.errno in _FULL
            else "check the path and its permissions, or choose another folder"
        )
        raise StorageError(f"{path}: {error.strerror or error}; {remedy}") from error


def write(path: Path, data: bytes) -> None:
    """Put `data` at `path`: after a crash the file is the old one or the new one, and after a return it is the new one.

    Raises:
        StorageError: if it cannot be written; `path` then holds the one or the other, and nothing else is left.
    """
    write_all({path: data})


def write_all(files: Mapping[Path, bytes]) -> None:
    """`write` each of several files of one folder, for little more than the time of one.

    They are synced side by side, which a journalling file system turns into one transaction.

    Raises:
        StorageError: naming the first that cannot be written; each then holds its old or its new content.
    """
    if not files:
        return
    try:
        with ThreadPoolExecutor(len(files)) as pool:
            for _ in pool.map(_write_beside, files, files.values()):
                pass
        for path in files:
            with storage_errors(path):
                _temporary(path).replace(path)
    except BaseException:
        for path in files:
            with suppress(OSError):
                _temporary(path).unlink(missing_ok=True)
        raise
    (folder,) = {path.parent for path in files}
    with storage_errors(folder):
        sync_folder(folder)


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def _write_beside(path: Path, data: bytes) -> None:
    with storage_errors(path):
        _temporary(path).unlink(missing_ok=True)
        with _temporary(path).open("xb", buffering=0) as file:  # "x" follows no link
            _write_synced(file, data)


def append(path: Path, data: bytes, *, at: int) -> int:
    """Put `data` at offset `at`, where the committed part of the file ends, dropping whatever a crash left behind it.

    Returns:
        The new end of the committed part, in bytes.

    Raises:
        StorageError: if it cannot be written; the file then ends at `at`.
    """
    with storage_errors(path), path.open("r+b", buffering=0) as file:
        file.truncate(at)
        file.seek(at)
        try:
            _write_synced(file, data)
        except OSError:
            # Where even this fails, the next append begins at `at` all the same.
            with suppress(OSError):
                file.truncate(at)
            raise
    return at + len(data)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a rename is lost with the power until its folder is synced."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems sync folders by themselves and refuse to be asked
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def _write_synced(file: FileIO, data: bytes) -> None:
    """Write and sync; a full disk shows as a short write first, and as an error on the next one."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())
