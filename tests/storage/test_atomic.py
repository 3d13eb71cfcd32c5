"""A folder that is replaced, a lock, a hash. Files and lines are tested with the run folder, which is made of them."""

import errno
import fcntl
import hashlib
import os
import subprocess
import sys

import pytest

from sp_rerank.errors import FolderBusyError, StorageError
from sp_rerank.storage import atomic


def fill(text):
    return lambda folder: (folder / "file").write_text(text)


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_folder_is_made_and_replaced_as_a_whole(tmp_path):
    target = tmp_path / "deep" / "target"
    atomic.replace_folder(target, fill("first"))
    (target / "stale").touch()
    atomic.replace_folder(target, fill("second"))
    assert content(target) == {"file": "second"}
    assert [path.name for path in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), ValueError("a bug"), KeyboardInterrupt()])
def test_a_folder_that_cannot_be_filled_leaves_the_old_one(tmp_path, error):
    target = tmp_path / "target"
    atomic.replace_folder(target, fill("first"))

    def fails(folder):
        (folder / "file").write_text("half")
        raise error

    with pytest.raises(StorageError if isinstance(error, OSError) else type(error)):
        atomic.replace_folder(target, fails)
    assert content(target) == {"file": "first"}
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


KILLED = """
import os, sys
from pathlib import Path
from sp_rerank.storage import atomic

rename, left = Path.rename, int(sys.argv[2])
def dying(self, to):
    global left
    if left == 0:
        os._exit(9)
    left -= 1
    return rename(self, to)
Path.rename = dying
atomic.replace_folder(Path(sys.argv[1]), lambda folder: (folder / "file").write_text("second"))
"""


@pytest.mark.parametrize("renames", [0, 1])
def test_a_process_that_dies_between_the_renames_leaves_the_old_folder_to_recover(tmp_path, renames):
    target = tmp_path / "target"
    atomic.replace_folder(target, fill("first"))
    assert subprocess.run([sys.executable, "-c", KILLED, target, str(renames)], check=False).returncode == 9
    atomic.recover_folder(target)
    assert content(target) == {"file": "first"}
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_link_is_not_replaced(tmp_path):
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "target"
    atomic.replace_folder(elsewhere, fill("kept"))
    target.symlink_to(elsewhere)
    with pytest.raises(StorageError, match="is a link"):
        atomic.replace_folder(target, fill("new"))
    assert content(elsewhere) == {"file": "kept"}


HOLDS = """
import sys
from pathlib import Path
from sp_rerank.storage import atomic

with atomic.locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_of_another_process_is_named_and_gone_with_it(tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(FolderBusyError, match=r"is writing there \(it holds \.lock\); wait"), atomic.locked(folder):
            pass
        holder.kill()
    with atomic.locked(folder):
        assert (folder / atomic.LOCK).exists()


@pytest.fixture
def no_flock(monkeypatch):
    """A file system without flock, on which filelock keeps the holder's process and host in the file."""

    def missing(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_without_flock_a_lock_left_behind_on_another_host_names_its_file_and_what_to_do(tmp_path, no_flock):
    file = tmp_path / atomic.LOCK
    with atomic.locked(tmp_path):
        assert file.read_text()
    file.write_text("4242\nanother-host\n")
    with pytest.raises(FolderBusyError) as caught, atomic.locked(tmp_path):
        pass
    assert f"lock file {file} of process 4242 on another-host" in str(caught.value)
    assert str(caught.value).endswith(f"if that process has ended, remove {file}")
    file.write_text("")  # the folder was copied from a file system that has flock
    with pytest.raises(FolderBusyError, match="if that process has ended, remove"), atomic.locked(tmp_path):
        pass
    file.unlink()
    with atomic.locked(tmp_path):
        pass


def test_a_file_system_that_refuses_locks_is_said_so(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    said = r"gives no locks \(No locks available\); choose a folder on another one"
    with pytest.raises(StorageError, match=said), atomic.locked(tmp_path):
        pass


def test_an_error_under_the_lock_is_the_callers_own(tmp_path):
    with pytest.raises(OSError, match="mine") as caught, atomic.locked(tmp_path):
        raise OSError("mine")
    assert type(caught.value) is OSError


def test_the_hash_of_bytes_and_of_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    expected = hashlib.sha256(b"abc").hexdigest()
    assert atomic.sha256_of(b"abc") == expected
    assert atomic.sha256_of(tmp_path / "file") == expected


def test_what_a_crash_left_behind_the_committed_part_is_dropped(tmp_path):
    file = tmp_path / "lines"
    file.write_bytes(b"one\ntwo\nhal")
    assert atomic.append(file, b"three\n", at=8) == 14
    assert file.read_bytes() == b"one\ntwo\nthree\n"


def test_threads_are_shared_by_many_calls_and_done_when_one_fails(tmp_path):
    threads = atomic.writing_threads()
    for number in range(5):
        atomic.write_all({tmp_path / f"{number}{place}": b"x" * place for place in range(6)}, threads)
    assert (tmp_path / "43").read_bytes() == b"xxx"
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / f"b{atomic.TEMPORARY_SUFFIX}").mkdir()  # cannot be written over
    with pytest.raises(StorageError):
        atomic.write_all({tmp_path / "sub" / name: b"y" * 100_000 for name in "abcdef"}, threads)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == [f"b{atomic.TEMPORARY_SUFFIX}"]
    atomic.write_all({tmp_path / "a": b"1", tmp_path / "b": b"2"}, threads)
    threads.shutdown()


def test_a_single_file_takes_no_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "ThreadPoolExecutor", None)
    atomic.write(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"
