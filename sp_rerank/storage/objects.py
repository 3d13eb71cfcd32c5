"""Objects that are there whole or not at all and are never overwritten, in a folder or an object store.

The first to create a key wins; whoever comes later is told so. That needs no lock, so it holds between machines. Knows
keys and bytes. Knows nothing of what they mean.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast
from uuid import uuid4

from sp_rerank.errors import StorageError, UsageError
from sp_rerank.storage import atomic

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}


@dataclass(frozen=True, slots=True)
class Listed:
    """An object in a listing.

    Attributes:
        key: Its name, with slashes.
        modified: When it was created, in seconds since 1970.
    """

    key: str
    modified: float


class ObjectStore(Protocol):
    """Where objects are kept. Every method raises StorageError where the store cannot be read or written."""

    @property
    def place(self) -> str:
        """The folder or the URL, for messages."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Put an object where there is none: True if it was, False if the key was taken; then nothing has changed."""
        ...

    def read(self, key: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        ...

    def open(self, key: str) -> BinaryIO:
        """An object to read parts of; StorageError too where there is none."""
        ...

    def list(self, prefix: str) -> Iterator[Listed]:
        """The objects whose keys begin with a prefix that ends in a slash, in no order."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        ...


def open_store(place: str | Path) -> ObjectStore:
    """The store at a folder, which need not exist, or at a URL such as s3://bucket/path, gs://.. or az://..

    Raises:
        UsageError: If the URL is of no kind that is known, or what it needs is not installed.
    """
    if "://" not in str(place):
        return FolderStore(Path(place))
    try:
        import obstore.store
    except ImportError as error:
        raise UsageError(f"{place} needs obstore; pip install sp-rerank[cloud]") from error
    try:
        return CloudStore(obstore.store.from_url(str(place)), str(place))
    except Exception as error:  # obstore raises what its many back ends raise
        raise UsageError(
            f"{place}: expected a folder, or a URL of a store such as s3://bucket/path: {error}"
        ) from error


class FolderStore:
    """Objects as files of a folder; see `ObjectStore`.

    An object is written under a name of its own, synced, and linked to its key, which fails where the key is taken. A
    process that is killed may leave the file with the name of its own; whoever creates the key then removes it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.folder)

    def create(self, key: str, data: bytes) -> bool:
        """As `ObjectStore.create`."""
        path = self.folder / key
        part = path.with_name(f"{path.name}.{uuid4().hex}{atomic.TEMPORARY_SUFFIX}")
        with atomic.storage_errors(path):
            if path.exists():
                return False
            _make_folder(path.parent)
            try:
                atomic.write_new(part, data)
                os.link(part, path)
            except (FileExistsError, FileNotFoundError):  # the first may have removed what was left over, ours too
                if not path.exists():
                    raise
                return False
            except OSError as error:
                if error.errno in _NO_LINKS:
                    raise StorageError(
                        f"{path}: the file system makes no links ({error.strerror}); choose a folder on another one"
                    ) from error
                raise
            finally:
                with suppress(OSError):
                    part.unlink(missing_ok=True)
            self._remove_parts(path)
            atomic.sync_folder(path.parent)
        return True

    def _remove_parts(self, path: Path) -> None:
        """Remove what writers of this key left that were killed, or came too late."""
        for entry in path.parent.iterdir():
            if entry.name.startswith(f"{path.name}.") and entry.name.endswith(atomic.TEMPORARY_SUFFIX):
                entry.unlink(missing_ok=True)

    def read(self, key: str) -> bytes | None:
        """As `ObjectStore.read`."""
        path = self.folder / key
        with atomic.storage_errors(path):
            return path.read_bytes() if path.is_file() else None

    def open(self, key: str) -> BinaryIO:
        """As `ObjectStore.open`."""
        path = self.folder / key
        with atomic.storage_errors(path):
            return path.open("rb")

    def list(self, prefix: str) -> Iterator[Listed]:
        """As `ObjectStore.list`."""
        with atomic.storage_errors(self.folder / prefix):
            for parent, _, names in os.walk(self.folder / prefix):
                for name in names:
                    if not name.endswith(atomic.TEMPORARY_SUFFIX):
                        path = Path(parent) / name
                        with suppress(FileNotFoundError):  # another process may delete it meanwhile
                            modified = path.stat().st_mtime
                            yield Listed(path.relative_to(self.folder).as_posix(), modified)

    def delete(self, key: str) -> None:
        """As `ObjectStore.delete`."""
        path = self.folder / key
        with atomic.storage_errors(path):
            path.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably."""
    if not folder.exists():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        atomic.sync_folder(folder.parent)


class CloudStore:
    """Objects of a store that obstore reads; see `ObjectStore`.

    Args:
        store: One of obstore's.
        place: Its URL, for messages.
    """

    def __init__(self, store: Any, place: str) -> None:
        self._store = store
        self.place = place

    def create(self, key: str, data: bytes) -> bool:
        """As `ObjectStore.create`: one conditional PUT, which the store itself decides."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._errors(key):
            try:
                obstore.put(self._store, key, data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def read(self, key: str) -> bytes | None:
        """As `ObjectStore.read`."""
        import obstore

        with self._errors(key):
            try:
                return bytes(obstore.get(self._store, key).bytes())
            except FileNotFoundError:
                return None

    def open(self, key: str) -> BinaryIO:
        """As `ObjectStore.open`."""
        import obstore

        with self._errors(key):
            return cast("BinaryIO", obstore.open_reader(self._store, key))

    def list(self, prefix: str) -> Iterator[Listed]:
        """As `ObjectStore.list`."""
        import obstore

        with self._errors(prefix):
            for chunk in obstore.list(self._store, prefix.removesuffix("/")):
                for entry in chunk:
                    yield Listed(entry["path"], entry["last_modified"].timestamp())

    def delete(self, key: str) -> None:
        """As `ObjectStore.delete`."""
        import obstore

        with self._errors(key), suppress(FileNotFoundError):
            obstore.delete(self._store, key)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError) as error:
            why = " ".join(str(error).split())[:300]
            raise StorageError(
                f"{self.place}/{key}: {why}; check the place, its permissions and that conditional writes are allowed"
            ) from error
