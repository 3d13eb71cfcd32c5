"""The engine on one machine: a process a worker, one JSON line for everything that is said. POSIX only."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from sp_rerank.batch.drive import Event
from sp_rerank.batch.order import Order, Outcome
from sp_rerank.batch.packs import Pack

LAST_WORDS = 300
"""Characters of what a process that died wrote last."""


@dataclass(slots=True)
class _Process:
    process: subprocess.Popen[bytes]
    slot: int
    said: IO[bytes]
    unread: bytes = b""


class LocalPool:
    """Workers as processes of this machine; a `sp_rerank.batch.drive.Pool`.

    Each is a session of its own, so that Ctrl-C reaches this process alone, and ends when this one does, however that
    ends.

    Args:
        order: What they make.
        accelerators: What CUDA_VISIBLE_DEVICES is for each of them, one a worker; empty where all see all.
    """

    def __init__(self, order: Order, accelerators: Sequence[str] = ()) -> None:
        self._order, self._accelerators = order, accelerators
        self._processes: dict[int, _Process] = {}
        self._selector = selectors.DefaultSelector()
        self._hired = 0

    def hire(self) -> int:
        """As `Pool.hire`."""
        slot = next(slot for slot in range(self._hired + 1) if all(p.slot != slot for p in self._processes.values()))
        environment = {**os.environ, "OMP_NUM_THREADS": str(self._order.threads), "TOKENIZERS_PARALLELISM": "false"}
        if self._accelerators:
            environment["CUDA_VISIBLE_DEVICES"] = self._accelerators[slot % len(self._accelerators)]
        said = tempfile.TemporaryFile()  # noqa: SIM115  # closed when the process is forgotten
        process = subprocess.Popen(
            [sys.executable, "-m", "sp_rerank.batch.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=environment, start_new_session=True,
        )  # fmt: skip
        worker = self._hired
        self._hired += 1
        self._processes[worker] = _Process(process, slot, said)
        assert process.stdout
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)
        self._send(worker, self._order.to_json())
        return worker

    def give(self, worker: int, pack: Pack) -> None:
        """As `Pool.give`."""
        self._send(worker, json.dumps(pack.to_record()))

    def _send(self, worker: int, line: str) -> None:
        pipe = self._processes[worker].process.stdin
        assert pipe
        with suppress(BrokenPipeError):  # it is dead, which is heard when its output ends
            pipe.write(line.encode() + b"\n")
            pipe.flush()

    def wait(self, seconds: float) -> Sequence[Event]:
        """As `Pool.wait`."""
        events: list[Event] = []
        for key, _ in self._selector.select(seconds):
            worker = key.data
            hired = self._processes[worker]
            data = os.read(key.fd, 1 << 16)
            *lines, hired.unread = (hired.unread + data).split(b"\n")
            events += [_event(worker, line) for line in lines]
            if not data:
                code = hired.process.wait()
                hired.said.seek(max(0, hired.said.seek(0, os.SEEK_END) - LAST_WORDS))
                words = hired.said.read().decode(errors="replace").strip().splitlines()
                self._forget(worker)
                events.append(Event(worker, "dead", error=": ".join([_ending(code), *words[-1:]])))
        return events

    def kill(self, worker: int) -> None:
        """As `Pool.kill`."""
        if worker in self._processes:
            self._processes[worker].process.kill()
            self._processes[worker].process.wait()
            self._forget(worker)

    def _forget(self, worker: int) -> None:
        hired = self._processes.pop(worker)
        assert hired.process.stdout and hired.process.stdin
        self._selector.unregister(hired.process.stdout)
        hired.process.stdout.close()
        hired.said.close()
        with suppress(BrokenPipeError):
            hired.process.stdin.close()

    def close(self) -> None:
        """As `Pool.close`."""
        for worker in list(self._processes):
            self.kill(worker)
        self._selector.close()


def _event(worker: int, line: bytes) -> Event:
    record = json.loads(line)
    outcomes = tuple(Outcome.from_record(outcome) for outcome in record.get("outcomes", ()))
    return Event(worker, record["event"], outcomes, record.get("error", ""), record.get("code", 1))


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
