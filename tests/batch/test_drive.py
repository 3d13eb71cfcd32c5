"""What an error does to a unit, a worker and the batch, with workers that do as they are told."""

from __future__ import annotations

import time
from collections import deque

import pytest

from sp_rerank.batch import drive
from sp_rerank.batch.drive import Driver, Event, Rules
from sp_rerank.batch.ledger import Failure, Ledger
from sp_rerank.batch.order import Best, Outcome
from sp_rerank.batch.packs import packed
from sp_rerank.batch.prompt_batch import parse_allowed
from sp_rerank.batch.prompts import PromptRow
from sp_rerank.errors import (
    HubUnavailableError,
    NothingUsableError,
    OptionError,
    StorageError,
    TryAgainError,
    UsageError,
)


class ObedientPool:
    """Workers that do what `act` says of (worker, prompt), or what `start` says of the number of a worker.

    A word of a driver's table: ok, failed, again, storage, dead, silent; of a start ready, dead, refused, silent.
    """

    def __init__(self, act=lambda worker, prompt: "ok", start=lambda worker: "ready"):
        self.act, self.start = act, start
        self.hired, self.given, self.killed, self.closed = 0, [], [], False
        self.events = deque()
        self.alive = set()
        self.busy = {}

    def hire(self):
        worker, self.hired = self.hired, self.hired + 1
        self.alive.add(worker)
        word = self.start(worker)
        code = HubUnavailableError.exit_code
        if word != "silent":
            self.events.append(Event(worker, word, error="as told", code=code))
        if word == "dead":
            self.alive.discard(worker)
        return worker

    def give(self, worker, pack):
        assert worker in self.alive and worker not in self.busy, "a worker that is not ready was given work"
        self.given.append("+".join(pack.due))
        self.busy[worker] = pack
        word = self.act(worker, "+".join(row.prompt for row in pack.rows))
        if word == "dead":
            self.alive.discard(worker)
            self.events.append(Event(worker, "dead", error="killed by SIGSEGV"))
        elif word != "silent":
            best = Best(1, 0.5) if word == "ok" else None
            outcomes = [Outcome(row_id, word, 4, best, "as told") for row_id in pack.due]
            self.events.append(
                Event(worker, "outcomes", tuple(outcomes[:1] if word in ("again", "storage") else outcomes))
            )

    def wait(self, seconds):
        if not self.events:
            time.sleep(min(seconds, 0.01))
            return []
        event = self.events.popleft()
        self.busy.pop(event.worker, None)
        return [event]

    def kill(self, worker):
        self.killed.append(worker)
        self.alive.discard(worker)
        self.busy.pop(worker, None)

    def close(self):
        self.closed = True


def packs(*prompts, size=1):
    return list(packed((PromptRow(str(number), prompt) for number, prompt in enumerate(prompts)), size))


def settle(tmp_path, pool, prompts, *, workers=2, size=1, stop=lambda: None, **rules):
    """The outcomes up to the error, if there is one."""
    driver = Driver(Ledger(tmp_path), pool, workers=workers, rules=Rules(**rules), stop=stop)
    found = []
    try:
        for outcome in driver.settle(iter(packs(*prompts, size=size))):
            found.append(outcome)
        error = None
    except Exception as caught:
        error = caught
    assert pool.closed
    return found, error


def test_all_are_made_once(tmp_path):
    pool = ObedientPool()
    found, error = settle(tmp_path, pool, ["a"] * 12)
    assert error is None
    assert sorted(pool.given, key=int) == [str(i) for i in range(12)] == sorted((o.id for o in found), key=int)
    assert pool.hired == 2


def test_no_more_workers_than_units(tmp_path):
    pool = ObedientPool()
    settle(tmp_path, pool, ["a", "b"], workers=8)
    assert pool.hired == 2


def test_a_prompt_that_raises_fails_once_and_its_worker_goes_on(tmp_path):
    pool = ObedientPool(lambda worker, prompt: "failed" if prompt == "raise" else "ok")
    found, error = settle(tmp_path, pool, ["a", "raise", "b", "c"], workers=1)
    assert error is None
    assert [(o.id, o.status) for o in found] == [("0", "ok"), ("1", "failed"), ("2", "ok"), ("3", "ok")]
    assert (pool.hired, pool.given) == (1, ["0", "1", "2", "3"])
    assert Ledger(tmp_path).failures() == [Failure("1", "failed", "as told", 1)]


def test_a_prompt_that_kills_its_process_is_tried_again_at_the_end_and_fails(tmp_path):
    pool = ObedientPool(lambda worker, prompt: "dead" if prompt == "exit" else "ok")
    found, error = settle(tmp_path, pool, ["exit", "a", "b", "c"], workers=1)
    assert error is None
    assert pool.given == ["0", "1", "2", "3", "0"]
    assert [(o.id, o.status) for o in found] == [("1", "ok"), ("2", "ok"), ("3", "ok"), ("0", "failed")]
    assert Ledger(tmp_path).failures() == [Failure("0", "failed", "its process ended: killed by SIGSEGV", 2)]


def test_a_worker_that_dies_costs_its_unit_alone(tmp_path):
    deaths = iter(["dead"])
    pool = ObedientPool(lambda worker, prompt: next(deaths, "ok"))
    found, error = settle(tmp_path, pool, ["a"] * 12)
    assert error is None
    assert sorted((o.id for o in found), key=int) == [str(i) for i in range(12)]
    assert len(pool.given) == 13
    assert Ledger(tmp_path).failures() == []


def test_workers_that_die_as_they_start_stop_the_batch_and_no_unit_is_charged(tmp_path):
    pool = ObedientPool(start=lambda worker: "dead")
    found, error = settle(tmp_path, pool, ["a"] * 12, workers=1)
    assert isinstance(error, TryAgainError) and "3 workers in a row did not start" in str(error)
    assert (found, pool.given, pool.hired, Ledger(tmp_path).failures()) == ([], [], 3, [])


def test_where_no_more_workers_start_those_that_did_go_on(tmp_path):
    pool = ObedientPool(start=lambda worker: "ready" if worker == 0 else "dead")
    found, error = settle(tmp_path, pool, ["a"] * 12)
    assert error is None
    assert (len(found), pool.hired) == (12, 4)


def test_a_sick_worker_ends_and_three_in_a_row_stop_the_batch(tmp_path):
    pool = ObedientPool(lambda worker, prompt: "again")
    _, error = settle(tmp_path, pool, ["a"] * 12, workers=1)
    assert isinstance(error, TryAgainError) and "3 units in a row" in str(error)
    assert pool.given == ["0", "1", "2"]  # a unit at most for each worker
    assert pool.killed == [0, 1, 2]


def test_a_sick_worker_among_sound_ones_costs_one_try(tmp_path):
    pool = ObedientPool(lambda worker, prompt: "again" if worker == 0 else "ok")
    found, error = settle(tmp_path, pool, ["a"] * 12)
    assert error is None
    assert len(found) == 12 and {o.status for o in found} == {"ok"}
    assert len(pool.given) == 13


def test_a_store_that_cannot_be_written_stops_the_batch(tmp_path):
    pool = ObedientPool(lambda worker, prompt: "storage")
    found, error = settle(tmp_path, pool, ["a"] * 12)
    assert isinstance(error, StorageError)
    assert (found, Ledger(tmp_path).failures()) == ([], [])


def test_a_worker_that_refuses_stops_the_batch_with_its_code(tmp_path):
    _, error = settle(tmp_path, ObedientPool(start=lambda worker: "refused"), ["a"] * 12)
    assert isinstance(error, HubUnavailableError) and str(error) == "as told"


def test_a_worker_of_another_kind_refuses_and_the_others_go_on(tmp_path):
    pool = ObedientPool(start=lambda worker: "refused" if worker == 1 else "ready")
    found, error = settle(tmp_path, pool, ["a"] * 12)
    assert error is None and len(found) == 12


def test_too_many_failures_stop_the_batch(tmp_path):
    pool = ObedientPool(lambda worker, prompt: "failed")
    found, error = settle(tmp_path, pool, ["a"] * 12, workers=1, max_failed=2)
    assert isinstance(error, NothingUsableError)
    assert len(found) == len(Ledger(tmp_path).failures()) == 3


def test_a_prompt_without_progress_is_killed_by_the_median_of_the_others(tmp_path):
    pool = ObedientPool(lambda worker, prompt: "silent" if prompt == "hang" else "ok")
    found, error = settle(tmp_path, pool, ["a", "hang", "b", "c"], timeout=0.05)
    assert error is None
    assert {o.id: o.status for o in found} == {"0": "ok", "1": "timeout", "2": "ok", "3": "ok"}
    (failure,) = Ledger(tmp_path).failures()
    assert (failure.status, failure.tries) == ("timeout", 1)
    assert len(pool.killed) == 1


def test_the_first_unit_has_more_time(tmp_path, monkeypatch):
    monkeypatch.setattr(drive, "FIRST_LIMIT", 0.2)
    pool = ObedientPool(lambda worker, prompt: "silent")
    began = time.monotonic()
    found, _ = settle(tmp_path, pool, ["a"], timeout=0.01)
    assert [o.status for o in found] == ["timeout"]
    assert time.monotonic() - began > 0.2


def test_a_worker_that_never_becomes_ready_is_killed_and_three_stop_the_batch(tmp_path):
    pool = ObedientPool(start=lambda worker: "silent")
    found, error = settle(tmp_path, pool, ["a"] * 4, workers=1, start_timeout=0.05)
    assert isinstance(error, TryAgainError)
    assert "3 workers in a row did not start, the last one: not ready after 0 seconds" in str(error)
    assert (found, pool.given, pool.killed, Ledger(tmp_path).failures()) == ([], [], [0, 1, 2], [])


def test_a_worker_that_never_becomes_ready_holds_up_no_other(tmp_path):
    pool = ObedientPool(start=lambda worker: "silent" if worker == 0 else "ready")
    found, error = settle(tmp_path, pool, ["a"] * 12, start_timeout=0.05)
    assert error is None
    assert len(found) == 12


def test_prompts_that_are_made_together_are_handed_out_together(tmp_path):
    pool = ObedientPool()
    found, error = settle(tmp_path, pool, ["a"] * 7, size=3)
    assert error is None
    assert (pool.given, [o.id for o in found]) == (["0+1+2", "3+4+5", "6"], [str(i) for i in range(7)])


def test_a_pack_that_kills_its_process_is_tried_again_and_then_made_prompt_by_prompt(tmp_path):
    pool = ObedientPool(lambda worker, prompt: "dead" if "exit" in prompt else "ok")
    found, error = settle(tmp_path, pool, ["a", "exit", "b", "c"], size=3, workers=1)
    assert error is None
    assert pool.given == ["0+1+2", "3", "0+1+2", "0", "1", "2", "1"]
    assert {o.id: o.status for o in found} == {"0": "ok", "1": "failed", "2": "ok", "3": "ok"}
    assert Ledger(tmp_path).failures() == [Failure("1", "failed", "its process ended: killed by SIGSEGV", 2)]


def test_a_death_by_chance_does_not_break_a_pack_up(tmp_path):
    deaths = iter(["dead"])
    pool = ObedientPool(lambda worker, prompt: next(deaths, "ok"))
    found, error = settle(tmp_path, pool, ["a"] * 3, size=3, workers=1)
    assert (error, pool.given, len(found)) == (None, ["0+1+2", "0+1+2"], 3)


def test_a_pack_without_progress_is_made_prompt_by_prompt(tmp_path):
    pool = ObedientPool(lambda worker, prompt: "silent" if "hang" in prompt else "ok")
    found, error = settle(tmp_path, pool, ["x", "y", "a", "hang"], size=2, workers=1, timeout=0.05, timeout_factor=1)
    assert error is None
    assert {o.id: o.status for o in found} == {"0": "ok", "1": "ok", "2": "ok", "3": "timeout"}


def test_what_of_a_pack_is_done_is_not_due_again(tmp_path):
    class Breaking(ObedientPool):
        def wait(self, seconds):
            events = super().wait(seconds)
            if len(self.given) == 1 and events and events[0].kind == "outcomes":
                lost = Outcome("1", "again", error="lost")
                return [Event(events[0].worker, "outcomes", (events[0].outcomes[0], lost))]
            return events

    pool = Breaking()
    found, error = settle(tmp_path, pool, ["a"] * 3, size=3, workers=1)
    assert (error, pool.given) == (None, ["0+1+2", "1+2"])
    assert [o.id for o in found] == ["0", "1", "2"]


def test_progress_is_a_sign_of_life(tmp_path):
    class Working(ObedientPool):
        def wait(self, seconds):
            time.sleep(0.02)
            if len(self.given) == 4 and self.busy and self.signs < 10:
                self.signs += 1
                return [Event(next(iter(self.busy)), "progress")]
            if self.signs == 10:
                self.signs = 11
                worker, pack = self.busy.popitem()
                return [Event(worker, "outcomes", (Outcome(pack.due[0], "ok", 4),))]
            return super().wait(seconds)

    pool = Working(lambda worker, prompt: "silent" if prompt == "slow" else "ok")
    pool.signs = 0
    found, error = settle(tmp_path, pool, ["a", "b", "c", "slow"], workers=1, timeout=0.1, timeout_factor=0.1)
    assert error is None
    assert [o.status for o in found] == ["ok"] * 4  # 10 times .02 seconds, and none of them without a sign


def test_when_asked_to_stop_what_is_in_hand_is_finished_and_no_more_handed_out(tmp_path):
    pool = ObedientPool()
    found, error = settle(tmp_path, pool, ["a"] * 12, stop=lambda: "SIGTERM" if len(pool.given) >= 4 else None)
    assert isinstance(error, TryAgainError) and "SIGTERM" in str(error)
    assert len(found) == len(pool.given) < 12
    assert Ledger(tmp_path).failures() == []


def test_what_does_not_end_within_the_grace_is_dropped(tmp_path):
    pool = ObedientPool(lambda worker, prompt: "silent")
    found, error = settle(
        tmp_path, pool, ["a"] * 4, stop=lambda: "SIGTERM" if pool.given else None, grace=0.05, timeout=60
    )
    assert isinstance(error, TryAgainError)
    assert (found, Ledger(tmp_path).failures()) == ([], [])


def test_the_list_is_read_as_it_is_needed(tmp_path):
    read = []

    def reading():
        for pack in packs(*["a"] * 1000):
            read.append(pack.ids)
            yield pack

    driver = Driver(Ledger(tmp_path), ObedientPool(), workers=2, rules=Rules())
    outcomes = driver.settle(reading())
    for _ in range(5):
        next(outcomes)
    assert len(read) < 15
    outcomes.close()


def test_how_many_may_fail():
    assert [parse_allowed(text, 200) for text in ("0", "12", "1%", "1.5%", "100%")] == [0, 12, 2, 3, 200]
    for text in ("-1", "many", "101%", "nan", ""):
        with pytest.raises(OptionError):
            parse_allowed(text, 200)


def test_an_error_of_a_worker_keeps_its_kind():
    event = Event(0, "refused", error="n is 2, not 3", code=2)
    assert isinstance(drive._error_of(event), UsageError)
