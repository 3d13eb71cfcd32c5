"""Objects are created once, whole, by whoever comes first, in a folder and in an object store."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.children import in_child

from sp_rerank.errors import StorageError, UsageError
from sp_rerank.storage import atomic
from sp_rerank.storage.objects import CloudStore, FolderStore, open_store


def cloud():
    obstore = pytest.importorskip("obstore.store")
    return CloudStore(obstore.MemoryStore(), "memory://test")


@pytest.fixture(params=["folder", "cloud"])
def store(request, tmp_path):
    return FolderStore(tmp_path / "store") if request.param == "folder" else cloud()


def test_the_first_wins_and_nothing_is_overwritten(store):
    assert store.read("a/b/1") is None
    assert store.create("a/b/1", b"first")
    assert not store.create("a/b/1", b"second")
    assert store.read("a/b/1") == b"first"
    assert store.create("a/c/2", b"")
    assert sorted(entry.key for entry in store.list("a/")) == ["a/b/1", "a/c/2"]
    assert [entry.key for entry in store.list("a/b/")] == ["a/b/1"]
    assert list(store.list("b/")) == []
    store.delete("a/b/1")
    store.delete("a/b/1")
    assert store.read("a/b/1") is None
    assert store.create("a/b/1", b"third")


def test_of_many_writers_at_once_one_wins(store):
    with ThreadPoolExecutor(16) as pool:
        for key in ("x/1", "x/2", "x/3", "x/4", "x/5"):
            data = [f"{key} {writer}".encode() for writer in range(16)]
            won = list(pool.map(lambda part, key=key: store.create(key, part), data))
            assert won.count(True) == 1
            assert store.read(key) == data[won.index(True)]
    assert len(list(store.list("x/"))) == 5


def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path, monkeypatch):
    store = FolderStore(tmp_path)

    def die(*_):
        os.kill(os.getpid(), 9)

    def write():
        monkeypatch.setattr(os, "link", die)
        store.create("u/1", b"half")

    assert not in_child(write)
    assert [path.name.endswith(atomic.TEMPORARY_SUFFIX) for path in (tmp_path / "u").iterdir()] == [True]
    assert list(store.list("u/")) == []
    assert store.create("u/1", b"whole")
    assert [path.name for path in (tmp_path / "u").iterdir()] == ["1"]


def test_a_writer_whose_file_was_swept_away_has_lost(tmp_path, monkeypatch):
    store, link = FolderStore(tmp_path), os.link

    def late(part, path):
        monkeypatch.setattr(os, "link", link)
        assert store.create("u/1", b"first")  # and sweeps
        link(part, path)

    monkeypatch.setattr(os, "link", late)
    assert not store.create("u/1", b"second")
    assert store.read("u/1") == b"first"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EPERM, errno.EROFS])
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link" if code == errno.EPERM else "fsync", refuse)
    with pytest.raises(StorageError, match=os.strerror(code)):
        FolderStore(tmp_path).create("1", b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_forbids_writing(tmp_path):
    obstore = pytest.importorskip("obstore.store")
    (tmp_path / "file").touch()
    store = CloudStore(obstore.LocalStore(tmp_path), "s3://bucket/x")
    with pytest.raises(StorageError, match=r"s3://bucket/x/file/1: .*conditional writes"):
        store.create("file/1", b"x")


def test_a_place_is_a_folder_or_a_url(tmp_path):
    pytest.importorskip("obstore")
    assert isinstance(open_store(tmp_path), FolderStore)
    assert isinstance(open_store("memory:///"), CloudStore)
    with pytest.raises(UsageError, match="nonsense://x: expected a folder, or a URL"):
        open_store("nonsense://x")


def test_a_key_leads_where_it_says(tmp_path):
    store = FolderStore(tmp_path / "a")
    store.create("b/c", b"x")
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("c")] == [Path("a/b/c")]
