"""What is made is encoded and committed beside: in order, not far behind, and an error is not lost."""

from __future__ import annotations

import threading
import time

import pytest
from PIL import Image
from support.runs import files_of, run_config

from sp_rerank.errors import StorageError
from sp_rerank.run.commit_queue import BEHIND, CommitQueue
from sp_rerank.run.folder import RunDir
from sp_rerank.run.state import Finished
from sp_rerank.run.writer import RunWriter
from sp_rerank.storage import atomic
from sp_rerank.types import Candidate


def test_commits_keep_their_order():
    queue, seen = CommitQueue(), []
    for number in range(6):
        encoders = [lambda number=number: time.sleep(0.03 if number % 2 == 0 else 0) or bytes([number])] * 3
        queue.submit(encoders, lambda files: seen.append(files))
    queue.close()
    assert seen == [[bytes([number])] * 3 for number in range(6)]


def test_no_more_than_two_batches_are_behind():
    queue, gate, done = CommitQueue(), threading.Event(), []
    for number in range(BEHIND):
        queue.submit([lambda: gate.wait(5) and b""], lambda files, number=number: done.append(number))
    assert done == []  # both are waiting, and `submit` has come back
    late = threading.Thread(target=lambda: queue.submit([lambda: b""], lambda files: done.append(2)))
    late.start()
    late.join(0.1)
    assert late.is_alive()  # the third waits for the first
    gate.set()
    late.join(5)
    queue.close()
    assert done == [0, 1, 2]
    assert queue.waited > 0.05


def test_after_an_error_nothing_more_is_committed():
    queue, done = CommitQueue(), []

    def fail(files):
        raise StorageError("the disk is full")

    queue.submit([lambda: b""], fail)
    queue.submit([lambda: b""], lambda files: done.append(1))
    with pytest.raises(StorageError, match="full"):
        queue.close()
    assert done == []


def made(index):
    return Finished(Candidate(index, 40 + index, Image.new("RGB", (8, 8), (index, 0, 0))), "ok", {"test": 0.5}, 3, 2)


def test_a_full_disk_leaves_what_was_committed_and_the_run_resumes(tmp_path, monkeypatch):
    config = run_config(8)
    write_all, calls = atomic.write_all, list[None]()

    def full(files, *threads):
        calls.extend([None] * (len(files) == 2))
        if len(calls) == 2:  # the second batch; run.json is written alone
            raise StorageError("no space")
        write_all(files, *threads)

    monkeypatch.setattr(atomic, "write_all", full)
    with pytest.raises(StorageError, match="no space"), RunWriter.start(tmp_path / "run", config) as run:
        for first in range(0, 8, 2):
            run.add([made(first), made(first + 1)])
            assert run.state.score(first) == 0.5  # known at once
        run.finish([])
    monkeypatch.undo()
    assert sorted(run.rows) == [0, 1]
    folder = RunDir.read(tmp_path / "run")
    assert (sorted(folder.rows), folder.verify()) == ([0, 1], [])
    with RunWriter.start(tmp_path / "run", config, resume=True) as run:
        assert run.missing == [2, 3, 4, 5, 6, 7]
        for first in range(0, 8, 2):
            run.add([made(first), made(first + 1)])
        run.finish([])
    with RunWriter.start(tmp_path / "whole", config) as run:
        for first in range(0, 8, 2):
            run.add([made(first), made(first + 1)])
        run.finish([])
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")


def test_whatever_ends_the_run_what_was_made_is_committed(tmp_path):
    with pytest.raises(KeyboardInterrupt), RunWriter.start(tmp_path / "run", run_config(4)) as run:
        run.add([made(0), made(1)])
        raise KeyboardInterrupt
    folder = RunDir.read(tmp_path / "run")
    assert (sorted(folder.rows), folder.verify()) == ([0, 1], [])


def test_the_files_of_all_batches_are_written_by_the_same_threads(tmp_path, monkeypatch):
    asked, make = [], atomic.writing_threads
    monkeypatch.setattr(atomic, "writing_threads", lambda: asked.append(make()) or asked[-1])
    before = threading.active_count()
    with RunWriter.start(tmp_path / "run", run_config(8)) as run:
        for first in range(0, 8, 2):
            run.add([made(first), made(first + 1)])
    assert len(asked) == 1
    assert threading.active_count() == before
    assert len(RunDir.read(tmp_path / "run").rows) == 8
