"""Bytes that are on the disk whole or not at all: a replaced file, a committed line, an error in one line.

Knows paths, bytes and fsync. Knows nothing of what the files mean.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
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
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with storage_errors(path):
        try:
            temporary.unlink(missing_ok=True)
            with temporary.open("xb", buffering=0) as file:  # "x" follows no link
                _write_all(file, data)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


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
            _write_all(file, data)
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


def _write_all(file: FileIO, data: bytes) -> None:
    """Write and sync; a full disk shows as a short write first, and as an error on the next one."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())
