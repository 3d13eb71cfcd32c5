"""Hands out units to workers until all are settled. The rules of what an error does to a unit, a worker and the batch:

what is seen                          unit                          worker            batch
a prompt that is wrong, or raises     failed, once                  goes on           goes on
nothing usable                        done, "unusable"              goes on           goes on
accelerator lost, memory too small    due again, charged            ends              3 in a row: stop, 75
process died                          due again, charged            replaced          goes on
a unit that was charged `tries` times failed
no progress                           failed, "timeout"             killed, replaced  goes on
one of the last two, prompts together each is due by itself
the store cannot be written           due again                     goes on           stop, 74
a worker that refuses to start        -                             -                 the first: stop with its code
a worker that is never ready          -                             killed            as one that died
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
from sp_rerank.batch.order import Outcome
from sp_rerank.batch.packs import Pack
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
        start_timeout: Seconds that a worker may take to load its models, a download included.
    """

    tries: int = 2
    timeout: float = 60.0
    timeout_factor: float = 20.0
    max_failed: int = 10
    grace: float = 25.0
    start_timeout: float = 1800.0


@dataclass(frozen=True, slots=True)
class Event:
    """What a worker did.

    Attributes:
        worker: Which.
        kind: "ready" for work, "refused" to start, made "progress" in its pack, came to "outcomes", or is "dead".
        outcomes: Of the units of its pack.
        error: Why it refused or how it died.
        code: The exit code of the error that it refused with.
    """

    worker: int
    kind: Literal["ready", "refused", "progress", "outcomes", "dead"]
    outcomes: tuple[Outcome, ...] = ()
    error: str = ""
    code: int = 1


class Pool(Protocol):
    """Worker processes of an engine."""

    def hire(self) -> int:
        """Start a worker; it may be used once it is ready."""
        ...

    def give(self, worker: int, pack: Pack) -> None:
        """Hand a pack to a worker that has none."""
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
    pack: Pack
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
        self._starting: dict[int, float] = {}
        self._free: deque[int] = deque()
        self._flight: dict[int, _Flight] = {}
        self._ahead: deque[Pack] = deque()
        self._again: deque[Pack] = deque()
        self._deaths: Counter[tuple[str, ...]] = Counter()
        self._seconds: deque[float] = deque(maxlen=200)
        self._ready = False
        self._broken = self._lost = self._failed = 0
        self._last_words = ""

    def settle(self, due: Iterator[Pack]) -> Iterator[Outcome]:
        """Make the units, and tell of each as it is settled.

        Args:
            due: Their packs; read as they are needed.

        Raises:
            SpRerankError: As the table above has it.
            TryAgainError: If `stop` said so; what was in hand is finished if the grace allows.
        """
        try:
            yield from self._settle(due)
        finally:
            self._pool.close()

    def _settle(self, due: Iterator[Pack]) -> Iterator[Outcome]:
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

    def _hand_out(self, due: Iterator[Pack]) -> None:
        """Hand units to the workers that are free, and hire more where there is more work than workers."""
        self._look_ahead(due)
        while self._free and self._ahead:
            worker, pack = self._free.popleft(), self._ahead.popleft()
            now = time.monotonic()
            self._flight[worker] = _Flight(pack, now, now)
            self._pool.give(worker, pack)
            self._look_ahead(due)
        if self._broken >= BROKEN:
            self._do_without()
            return
        idle = len(self._free) + len(self._starting)
        for _ in range(min(self._workers - len(self._flight) - idle, len(self._ahead) - idle)):
            self._starting[self._pool.hire()] = time.monotonic()

    def _look_ahead(self, due: Iterator[Pack]) -> None:
        """Read as many packs as there may be workers; those that come again come after all others."""
        while len(self._ahead) < self._workers and (pack := next(due, None)):
            self._ahead.append(pack)
        while len(self._ahead) < self._workers and self._again:
            self._ahead.append(self._again.popleft())

    def _heard(self, event: Event) -> Iterator[Outcome]:
        worker = event.worker
        if event.kind == "ready":
            self._starting.pop(worker, None)
            self._free.append(worker)
            self._ready, self._broken = True, 0
        elif event.kind == "refused":
            self._starting.pop(worker, None)
            self._pool.kill(worker)
            if not self._ready:
                raise _error_of(event)
            self._count_broken(event.error)
        elif event.kind == "progress" and worker in self._flight:
            self._flight[worker].heard = time.monotonic()
        elif event.kind == "outcomes" and event.outcomes and worker in self._flight:
            yield from self._settled(worker, event.outcomes)
        elif event.kind == "dead":
            yield from self._died(worker, event.error)

    def _settled(self, worker: int, outcomes: Sequence[Outcome]) -> Iterator[Outcome]:
        flight, last = self._flight.pop(worker), outcomes[-1]
        settled = [outcome for outcome in outcomes if outcome.status not in ("again", "storage")]
        if any(outcome.status != "failed" for outcome in settled):
            self._seconds.append(time.monotonic() - flight.began)
        for outcome in settled:
            self._lost = 0
            if outcome.status == "failed":
                tries = self._deaths[flight.pack.ids] + 1
                yield from self._failing(outcome.id, "failed", outcome.error, tries)
            else:
                yield outcome
        if last.status == "storage":
            raise StorageError(last.error)
        if last.status != "again":
            self._free.append(worker)
            return
        self._pool.kill(worker)
        self._lost += 1
        if self._lost == BROKEN:
            raise TryAgainError(f"{BROKEN} units in a row could not be made: {last.error}")
        done = {outcome.id for outcome in settled}
        yield from self._charged(flight.pack.without(done.__contains__), last.error)

    def _died(self, worker: int, error: str) -> Iterator[Outcome]:
        if worker in self._starting:
            del self._starting[worker]
            self._count_broken(error)
        elif worker in self._flight:
            yield from self._charged(self._flight.pop(worker).pack, f"its process ended: {error}")
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

    def _charged(self, pack: Pack, error: str) -> Iterator[Outcome]:
        """A pack whose worker broke: due again, or given up."""
        self._deaths[pack.ids] += 1
        if self._deaths[pack.ids] < self._rules.tries:
            self._again.append(pack)
            return
        yield from self._given_up(pack, "failed", error, self._deaths[pack.ids])

    def _given_up(self, pack: Pack, status: Literal["failed", "timeout"], error: str, tries: int) -> Iterator[Outcome]:
        """A unit fails; of several that are made together each is due by itself, for one of them is to blame."""
        if len(pack.rows) > 1:
            self._again.extend(pack.alone())
            return
        for row_id in pack.due:
            yield from self._failing(row_id, status, error, tries)

    def _failing(self, row_id: str, status: Literal["failed", "timeout"], error: str, tries: int) -> Iterator[Outcome]:
        self._ledger.fail(Failure(row_id, status, error, tries))
        self._failed += 1
        yield Outcome(row_id, status, error=error)
        if self._failed > self._rules.max_failed:
            raise NothingUsableError(
                f"{self._failed} units failed, more than are allowed; the last one, {row_id}: {error}"
            )

    def _overdue(self) -> Iterator[Outcome]:
        """Units without progress and workers that never become ready, the worker killed."""
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
                yield from self._given_up(flight.pack, "timeout", error, self._deaths[flight.pack.ids] + 1)
        for worker, began in list(self._starting.items()):
            if now - began > self._rules.start_timeout:
                del self._starting[worker]
                self._pool.kill(worker)
                self._count_broken(f"not ready after {self._rules.start_timeout:.0f} seconds (start_timeout)")


def _error_of(event: Event) -> SpRerankError:
    """The error that a worker refused with."""
    kinds = (UsageError, HubUnavailableError, StorageError, TryAgainError, NothingUsableError)
    kind = next((kind for kind in kinds if kind.exit_code == event.code), SpRerankError)
    return kind(event.error)
