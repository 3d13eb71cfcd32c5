"""Hands out units to workers until all are settled. The rules of what an error does to a unit, a worker and the batch:

what is seen                          unit                          worker            batch
a prompt that is wrong, or raises     failed, once                  goes on           goes on
nothing usable                        done, "unusable"              goes on           goes on
accelerator lost, memory too small    due again, charged            ends              3 in a row: stop, 75
process died                          due again, charged            replaced          goes on
a unit that was charged `tries` times failed
no progress                           failed, "timeout"             killed, replaced  goes on
the store cannot be written           due again                     goes on           stop, 74
a worker that refuses to start        -                             -                 the first: stop with its code
3 workers in a row never ready        -                             -                 no more of them; none left: 75
more failures than are allowed        -                             -                 stop, 4

Only a worker that said that it is ready gets work, and only the unit that a process had in hand is charged for its
death: a broken worker is faster than a sound one and would drain the list. Knows rules and time; knows no model, and
of an engine only `Pool`.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, Protocol

from sp_rerank.batch.ledger import Failure, Ledger
from sp_rerank.batch.prompts import PromptRow
from sp_rerank.batch.worker import Outcome
from sp_rerank.errors import (
    HubUnavailableError,
    NothingUsableError,
    SpRerankError,
    StorageError,
    TryAgainError,
    UsageError,
)

BROKEN = 3
"""Workers in a row that never become ready, or lose their accelerator, before the batch stops."""

FIRST_LIMIT = 900.0
"""Seconds without progress before any unit is finished: the first one compiles, allocates and reads from cold disks."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What is tried and for how long.

    Attributes:
        tries: How many deaths of a process a unit is charged with before it has failed.
        timeout: Seconds without progress that a unit has at least.
        timeout_factor: ... and as a multiple of the median of the finished units.
        max_failed: Number of failures above which the batch stops.
        grace: Seconds for the units in hand after SIGTERM or Ctrl-C.
    """

    tries: int = 2
    timeout: float = 60.0
    timeout_factor: float = 20.0
    max_failed: int = 10
    grace: float = 25.0


@dataclass(frozen=True, slots=True)
class Event:
    """What a worker did.

    Attributes:
        worker: Which.
        kind: "ready" for work, "refused" to start, made "progress" in its unit, came to an "outcome", or is "dead".
        outcome: Of its unit.
        error: Why it refused or how it died.
        code: The exit code of the error that it refused with.
    """

    worker: int
    kind: Literal["ready", "refused", "progress", "outcome", "dead"]
    outcome: Outcome | None = None
    error: str = ""
    code: int = 1


class Pool(Protocol):
    """Worker processes of an engine."""

    def hire(self) -> int:
        """Start a worker; it may be used once it is ready."""
        ...

    def give(self, worker: int, row: PromptRow) -> None:
        """Hand a unit to a worker that has none."""
        ...

    def wait(self, seconds: float) -> Sequence[Event]:
        """What has happened, waiting for something to happen at most that long."""
        ...

    def kill(self, worker: int) -> None:
        """End a worker; nothing more is heard of it."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...


@dataclass(slots=True)
class _Flight:
    row: PromptRow
    began: float
    heard: float


class Driver:
    """Settles the due units of a batch.

    Args:
        ledger: Of the batch.
        pool: Makes units.
        workers: The most workers at once.
        rules: What is tried and for how long.
        stop: Asked all the time; a text says why no more units are handed out.
    """

    def __init__(
        self, ledger: Ledger, pool: Pool, *, workers: int, rules: Rules, stop: Callable[[], str | None] = lambda: None
    ) -> None:
        self._ledger, self._pool, self._workers, self._rules, self._stop = ledger, pool, workers, rules, stop
        self._starting: set[int] = set()
        self._free: deque[int] = deque()
        self._flight: dict[int, _Flight] = {}
        self._ahead: deque[PromptRow] = deque()
        self._again: deque[PromptRow] = deque()
        self._deaths: Counter[str] = Counter()
        self._seconds: deque[float] = deque(maxlen=200)
        self._ready = False
        self._broken = self._lost = self._failed = 0
        self._last_words = ""

    def settle(self, due: Iterator[PromptRow]) -> Iterator[Outcome]:
        """Make the units, and tell of each as it is settled.

        Args:
            due: Their rows; read as they are needed.

        Raises:
            SpRerankError: As the table above has it.
            TryAgainError: If `stop` said so; what was in hand is finished if the grace allows.
        """
        try:
            yield from self._settle(due)
        finally:
            self._pool.close()

    def _settle(self, due: Iterator[PromptRow]) -> Iterator[Outcome]:
        deadline: float | None = None
        while True:
            why = self._stop()
            if why and deadline is None:
                deadline = time.monotonic() + self._rules.grace
            if deadline is None:
                self._hand_out(due)
            if not (self._flight or (deadline is None and self._ahead)):
                break
            if deadline is not None and time.monotonic() > deadline:
                break
            for event in self._pool.wait(0.5):
                yield from self._heard(event)
            yield from self._overdue()
        if deadline is not None:
            raise TryAgainError(f"stopped by {why}; what is done is kept, the same command goes on")

    def _hand_out(self, due: Iterator[PromptRow]) -> None:
        """Hand units to the workers that are free, and hire more where there is more work than workers."""
        self._look_ahead(due)
        while self._free and self._ahead:
            worker, row = self._free.popleft(), self._ahead.popleft()
            now = time.monotonic()
            self._flight[worker] = _Flight(row, now, now)
            self._pool.give(worker, row)
            self._look_ahead(due)
        if self._broken >= BROKEN:
            self._do_without()
            return
        idle = len(self._free) + len(self._starting)
        for _ in range(min(self._workers - len(self._flight) - idle, len(self._ahead) - idle)):
            self._starting.add(self._pool.hire())

    def _look_ahead(self, due: Iterator[PromptRow]) -> None:
        """Read as many rows as there may be workers; those that come again come after all others."""
        while len(self._ahead) < self._workers and (row := next(due, None)):
            self._ahead.append(row)
        while len(self._ahead) < self._workers and self._again:
            self._ahead.append(self._again.popleft())

    def _heard(self, event: Event) -> Iterator[Outcome]:
        worker = event.worker
        if event.kind == "ready":
            self._starting.discard(worker)
            self._free.append(worker)
            self._ready, self._broken = True, 0
        elif event.kind == "refused":
            self._starting.discard(worker)
            self._pool.kill(worker)
            if not self._ready:
                raise _error_of(event)
            self._count_broken(event.error)
        elif event.kind == "progress" and worker in self._flight:
            self._flight[worker].heard = time.monotonic()
        elif event.kind == "outcome" and event.outcome and worker in self._flight:
            yield from self._settled(worker, event.outcome)
        elif event.kind == "dead":
            yield from self._died(worker, event.error)

    def _settled(self, worker: int, outcome: Outcome) -> Iterator[Outcome]:
        flight = self._flight.pop(worker)
        if outcome.status == "storage":
            raise StorageError(outcome.error)
        if outcome.status == "again":
            self._pool.kill(worker)
            self._lost += 1
            if self._lost == BROKEN:
                raise TryAgainError(f"{BROKEN} units in a row could not be made: {outcome.error}")
            yield from self._charged(flight.row, outcome.error)
            return
        self._free.append(worker)
        self._lost = 0
        if outcome.status == "failed":
            yield from self._failing(flight.row, "failed", outcome.error, self._deaths[flight.row.id] + 1)
            return
        self._seconds.append(time.monotonic() - flight.began)
        yield outcome

    def _died(self, worker: int, error: str) -> Iterator[Outcome]:
        if worker in self._starting:
            self._starting.discard(worker)
            self._count_broken(error)
        elif worker in self._flight:
            yield from self._charged(self._flight.pop(worker).row, f"its process ended: {error}")
        elif worker in self._free:
            self._free.remove(worker)

    def _count_broken(self, error: str) -> None:
        self._broken += 1
        self._last_words = error

    def _do_without(self) -> None:
        """Hire no more where workers do not start; those that are there go on.

        Raises:
            TryAgainError: If there are none.
        """
        if not (self._flight or self._free or self._starting):
            raise TryAgainError(f"{BROKEN} workers in a row did not start, the last one: {self._last_words}")

    def _charged(self, row: PromptRow, error: str) -> Iterator[Outcome]:
        """A unit whose worker broke: due again, or failed."""
        self._deaths[row.id] += 1
        if self._deaths[row.id] < self._rules.tries:
            self._again.append(row)
            return
        yield from self._failing(row, "failed", error, self._deaths[row.id])

    def _failing(
        self, row: PromptRow, status: Literal["failed", "timeout"], error: str, tries: int
    ) -> Iterator[Outcome]:
        self._ledger.fail(Failure(row.id, status, error, tries))
        self._failed += 1
        yield Outcome(row.id, status, error=error)
        if self._failed > self._rules.max_failed:
            raise NothingUsableError(
                f"{self._failed} units failed, more than are allowed; the last one, {row.id}: {error}"
            )

    def _overdue(self) -> Iterator[Outcome]:
        """Units without progress, each with its worker killed."""
        if self._seconds:
            limit = max(self._rules.timeout, self._rules.timeout_factor * median(self._seconds))
        else:
            limit = max(self._rules.timeout, FIRST_LIMIT)
        now = time.monotonic()
        for worker, flight in list(self._flight.items()):
            if now - flight.heard > limit:
                del self._flight[worker]
                self._pool.kill(worker)
                error = f"no progress for {limit:.0f} seconds"
                yield from self._failing(flight.row, "timeout", error, self._deaths[flight.row.id] + 1)


def _error_of(event: Event) -> SpRerankError:
    """The error that a worker refused with."""
    kinds = (UsageError, HubUnavailableError, StorageError, TryAgainError, NothingUsableError)
    kind = next((kind for kind in kinds if kind.exit_code == event.code), SpRerankError)
    return kind(event.error)
