"""Bytes that are on the disk whole or not at all: a replaced file or folder, a committed line, a lock, a hash.

Knows paths, bytes, fsync and locks. Knows nothing of what the files mean.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from filelock import FileLock, Timeout

from sp_rerank.errors import FolderBusyError, StorageError

TEMPORARY_SUFFIX = ".sp-rerank.part"
"""Of a file that is being written; peculiar enough that whatever bears it is ours to remove."""

LOCK = ".lock"
"""The lock file of a folder; it stays there, empty, while no process holds it."""

_OLD_SUFFIX = ".old"
_REMEDIES = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space there, then run the same again and resume"
    ),
    errno.EMFILE: "this process reached its limit of open files; raise it (ulimit -n)",
    errno.ENFILE: "this machine reached its limit of open files; end other programs, or raise it (fs.file-max)",
    errno.ENOLCK: "the file system has no locks left, or gives none; choose a folder on another one",
    errno.ENAMETOOLONG: "the name is longer than the file system allows; choose a shorter one",
    errno.EROFS: "the file system is read-only; choose a folder on another one",
}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about `path` into a StorageError of one line that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the path and its permissions, or choose another folder")
        raise StorageError(f"{path}: {error.strerror or error}; {remedy}") from error


def write(path: Path, data: bytes) -> None:
    """Put `data` at `path`: after a crash the file is the old one or the new one, and after a return it is the new one.

    Raises:
        StorageError: if it cannot be written; `path` then holds the one or the other, and nothing else is left.
    """
    write_all({path: data})


SIDE_BY_SIDE = 32
"""Threads that write the files of a batch, at most: they wait for the disk, which syncs several at once."""


def writing_threads() -> ThreadPoolExecutor:
    """The threads for many calls of `write_all`, to be shut down by whoever asks for them."""
    return ThreadPoolExecutor(SIDE_BY_SIDE, "write")


def write_all(files: Mapping[Path, bytes], threads: Executor | None = None) -> None:
    """`write` each of several files of one folder, for little more than the time of one.

    They are synced side by side, which a journaling file system turns into one transaction.

    Args:
        files: What is to be in each.
        threads: Of `writing_threads`; None takes some for this call alone.

    Raises:
        StorageError: naming the first that cannot be written; each then holds its old or its new content.
    """
    if not files:
        return
    try:
        _write_each(files, threads)
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


def _write_each(files: Mapping[Path, bytes], threads: Executor | None) -> None:
    """Write the temporary file of each; when this returns or raises, no thread is at it any more."""
    if len(files) == 1:
        for path, data in files.items():
            _write_beside(path, data)
    elif threads is None:
        with ThreadPoolExecutor(min(len(files), SIDE_BY_SIDE)) as own:
            _write_each(files, own)
    else:
        written = [threads.submit(_write_beside, path, data) for path, data in files.items()]
        wait(written)
        for one in written:
            one.result()


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def _write_beside(path: Path, data: bytes) -> None:
    with storage_errors(path):
        _temporary(path).unlink(missing_ok=True)
        write_new(_temporary(path), data)


def write_new(path: Path, data: bytes) -> None:
    """Write and sync a file that is not there yet; a name that is taken, also by a link, is a FileExistsError.

    Raises:
        OSError: If it cannot be written; a part of it may be left.
    """
    with path.open("xb", buffering=0) as file:
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


def replace_folder(target: Path, fill: Callable[[Path], object]) -> None:
    """Put a folder at `target` as a whole: after a crash it is the old one or the new one, see `recover_folder`.

    For one process at a time; where there may be several, hold `locked` meanwhile.

    Args:
        target: need not exist.
        fill: writes the files into the new folder, whose path it is given.

    Raises:
        StorageError: if it cannot be written, or `target` is a link.
    """
    recover_folder(target)
    fresh, old = _beside(target)
    with storage_errors(target):
        fresh.mkdir(parents=True)
        try:
            _fill(fresh, fill)
            for file in (path for path in fresh.rglob("*") if path.is_file()):
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
            sync_folder(fresh)
            if target.exists():
                target.rename(old)
            fresh.rename(target)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            if old.exists() and not target.exists():
                old.rename(target)
            raise
        sync_folder(target.parent)
        shutil.rmtree(old, ignore_errors=True)


def _fill(fresh: Path, fill: Callable[[Path], object]) -> None:
    try:
        fill(fresh)
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        # As a full disk shows in safetensors, which is not imported for a name.
        raise StorageError(f"{fresh} cannot be written: {error}; free some space there, then try again") from error


def recover_folder(target: Path) -> None:
    """Undo a `replace_folder` that was cut short.

    Raises:
        StorageError: if the place cannot be written, or `target` is a link.
    """
    if target.is_symlink():
        raise StorageError(f"{target} is a link; expected a folder, or a place for a new one; remove the link")
    fresh, old = _beside(target)
    with storage_errors(target):
        if fresh.exists():
            shutil.rmtree(fresh)
        if old.exists() and not target.exists():
            old.rename(target)
        elif old.exists():
            shutil.rmtree(old)


def _beside(target: Path) -> tuple[Path, Path]:
    """Where the new folder is written, and where the old one waits until the new one is in its place."""
    return target.with_name(target.name + TEMPORARY_SUFFIX), target.with_name(target.name + _OLD_SUFFIX)


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Make the folder, and let no other process write to it meanwhile; when this one dies, its lock is gone.

    Where a file system has no such locks, the file LOCK holds the process and its host instead, and stays behind when
    the process is killed: from another host it cannot be known to be dead.

    Args:
        folder: where the lock file lies.
        wait: until the other process is done, instead of raising.

    Raises:
        FolderBusyError: if another process holds the lock; it names the lock file.
        StorageError: if the folder cannot be made, or no lock be had in it.
    """
    file = folder / LOCK
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        _acquire(lock, file, wait)
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, file: Path, wait: bool) -> None:
    try:
        with storage_errors(file):
            try:
                lock.acquire(blocking=wait)
            except Timeout:  # an OSError too, but not one of storage
                raise FolderBusyError(_busy(file, _stays_behind(lock))) from None
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    raise StorageError(
                        f"{file}: the file system gives no locks ({error.strerror}); choose a folder on another one"
                    ) from error
                raise
    except NotImplementedError as error:  # a filelock without a way around
        raise StorageError(f"{file}: the file system gives no locks; choose a folder on another one") from error


def _stays_behind(lock: FileLock) -> bool:
    """Whether filelock went over to a file that names its holder: only such a lock knows a process."""
    return hasattr(lock, "pid")


def _busy(file: Path, stays_behind: bool) -> str:
    """Which lock it is, and what to do; one that stays behind when a process is killed can be removed."""
    busy = f"{file.parent}: another process is writing there"
    wait = "wait for it, or choose another folder"
    if not stays_behind:
        return f"{busy} (it holds {file.name}); {wait}"
    try:
        holder = file.read_text(encoding="utf-8", errors="replace").split()[:2]
    except OSError:
        holder = []
    named = f" of process {' on '.join(holder)}" if holder else ""
    return f"{busy} (lock file {file}{named}); {wait}; if that process has ended, remove {file}"


def sha256_of(content: bytes | Path) -> str:
    """The SHA-256 of bytes or of a file, 64 hex digits.

    Raises:
        OSError: if the file cannot be read.
    """
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
