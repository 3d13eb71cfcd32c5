"""Encodes and commits what is made beside whoever makes it: in order, and at most two batches behind.

The accelerator is not to wait for the compression of PNG files. Knows threads; knows no file and no candidate.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

BEHIND = 2
"""Batches that are waiting to be committed, at most; their images are in memory."""

ENCODERS = 8
"""Threads that encode, at most."""


class CommitQueue:
    """Work in two steps, of which the first is done by many threads and the second in order by one.

    Attributes:
        waited: Seconds that `submit` waited, because too much was waiting already.
        encoding: Seconds that the first steps took, summed over the threads.
    """

    def __init__(self) -> None:
        self.waited = self.encoding = 0.0
        self._encoders = ThreadPoolExecutor(min(ENCODERS, os.cpu_count() or 1), "encode")
        self._committer = ThreadPoolExecutor(1, "commit")
        self._pending: deque[Future[None]] = deque()
        self._failed = False

    def submit(self, encoders: Sequence[Callable[[], bytes]], commit: Callable[[list[bytes]], None]) -> None:
        """Encode and then commit a batch, later.

        Args:
            encoders: Each gives a file.
            commit: Is given the files, after the commits of all batches before; not called once one has failed.

        Raises:
            Exception: What an earlier batch raised.
        """
        began = time.monotonic()
        while len(self._pending) >= BEHIND:
            self._pending.popleft().result()
        self.waited += time.monotonic() - began
        files = [self._encoders.submit(self._timed, encode) for encode in encoders]
        self._pending.append(self._committer.submit(self._commit, files, commit))

    def _timed(self, encode: Callable[[], bytes]) -> bytes:
        began = time.thread_time()
        file = encode()
        self.encoding += time.thread_time() - began
        return file

    def _commit(self, files: Sequence[Future[bytes]], commit: Callable[[list[bytes]], None]) -> None:
        if self._failed:
            return
        try:
            commit([file.result() for file in files])
        except BaseException:
            self._failed = True
            raise

    def drain(self) -> None:
        """Wait until everything is committed.

        Raises:
            Exception: What a batch raised; once.
        """
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """Drain, and end the threads.

        Raises:
            Exception: As `drain`.
        """
        try:
            self.drain()
        finally:
            self._encoders.shutdown()
            self._committer.shutdown()
