"""Every prompt exactly once, whatever dies: workers, the driver, prompts that take their process along."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.batch_worlds import ATTEMPTS, PAUSE

from sp_rerank.batch.ledger import Ledger
from sp_rerank.storage import atomic

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="SIGKILL and sessions are POSIX"),
    pytest.mark.timeout(900),
]

TESTS = Path(__file__).parents[1]
PROMPTS = 12
CALLS = 2  # of the pipeline for a prompt: 8 candidates in batches of 4
KILLS = 10
LIMIT = 600  # seconds for a process, on a machine that does much else


def environment(attempts: Path, pause: float = 0.0) -> dict[str, str]:
    path = os.pathsep.join([str(TESTS), *sys.path])
    return {**os.environ, "PYTHONPATH": path, ATTEMPTS: str(attempts), PAUSE: str(pause), "OMP_NUM_THREADS": "1"}


def start(folder, prompts, attempts, *options, pause=0.0):
    return subprocess.Popen(
        [sys.executable, "-m", "support.batch_driver", str(folder), str(prompts), *map(str, options)],
        cwd=TESTS, env=environment(attempts, pause), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(folder, prompts, attempts, *options, pause=0.0):
    with start(folder, prompts, attempts, *options, pause=pause) as process:
        out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out.split("\n")[:-1], err


def objects(folder: Path) -> dict[str, bytes]:
    """Every file of a batch by its path; temporary ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def begun(attempts: Path) -> list[str]:
    return [line.split(" ", 1)[1] for line in attempts.read_text().splitlines()] if attempts.exists() else []


def children(attempts: Path) -> set[int]:
    """Worker processes that began a prompt and are still there."""
    pids = {int(line.split(" ", 1)[0]) for line in attempts.read_text().splitlines()} if attempts.exists() else set()
    return {pid for pid in pids if alive(pid)}


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition):
    while not condition():
        time.sleep(0.02)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("list") / "prompts.txt"
    file.write_text("".join(f"prompt {number}\n" for number in range(PROMPTS)))
    return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory, prompts):
    """A batch that one worker made without being disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    code, lines, err = run(folder / "batch", prompts, folder / "attempts", "--workers", 1)
    assert (code, len(lines)) == (0, PROMPTS), err
    assert len(begun(folder / "attempts")) == PROMPTS * CALLS
    return objects(folder / "batch")


@pytest.mark.parametrize("way", ["two workers", "two shards"])
def test_however_it_is_made_the_units_are_the_same_bytes(tmp_path, prompts, whole, way):
    folder, attempts = tmp_path / "batch", tmp_path / "attempts"
    if way == "two workers":
        assert run(folder, prompts, attempts)[0] == 0
    else:
        processes = [start(folder, prompts, attempts, "--shard", f"{i}/2", "--workers", 1) for i in range(2)]
        assert [process.wait(LIMIT) for process in processes] == [0, 0]
        for process in processes:
            process.communicate()
    assert objects(folder) == whole
    assert len(begun(attempts)) == PROMPTS * CALLS


def test_ten_kills_of_workers_and_drivers_lose_nothing_and_make_nothing_twice(tmp_path, prompts, whole):
    folder, attempts, moment = tmp_path / "batch", tmp_path / "attempts", random.Random()
    kills = lost = 0
    while True:
        process = start(folder, prompts, attempts, pause=0.15)
        while kills < KILLS and process.poll() is None:
            known = len(begun(attempts))
            wait_until(lambda known=known, process=process: len(begun(attempts)) > known or process.poll() is not None)
            time.sleep(moment.uniform(0, 0.3))
            victims = [*children(attempts), process.pid]
            victim = moment.choice(victims) if kills % 3 else process.pid
            if process.poll() is None and alive(victim):
                os.kill(victim, signal.SIGKILL)
                kills += 1
                lost += 2 if victim == process.pid else 1  # a driver takes the units of its two workers along
        _, err = process.communicate(timeout=LIMIT)
        if kills >= KILLS and process.returncode == 0:
            break
        assert process.returncode in (0, -9, 75), err
    tried = begun(attempts)
    failed = Ledger(folder).failures()
    print(f"\n{kills} SIGKILLs: {len(tried)} calls for {PROMPTS * CALLS}, {len(failed)} units failed")
    wait_until(lambda: not children(attempts))
    made = objects(folder)
    assert [name for name in made if name.endswith(atomic.TEMPORARY_SUFFIX)] == []
    if failed:  # two deaths of one unit by chance: that is the rule, and a retry makes it
        assert Ledger(folder).retry() == len(failed)
        assert run(folder, prompts, attempts)[0] == 0
        made = objects(folder)
    assert made == whole
    units_begun = sum(tried.count(f"prompt {number}") for number in range(PROMPTS)) / CALLS
    assert units_begun <= PROMPTS + lost


def test_prompts_that_are_poison(tmp_path):
    folder, attempts, file = tmp_path / "batch", tmp_path / "attempts", tmp_path / "p.txt"
    file.write_text("\n".join(["raise", "exit", "hang", *(f"prompt {number}" for number in range(9))]))
    code, lines, err = run(folder, file, attempts, "--timeout", 8, "--factor", 1)
    assert code == 0, err
    outcomes = dict(line.split() for line in lines)
    assert outcomes == {"0": "failed", "1": "failed", "2": "timeout", **{str(i): "ok" for i in range(3, 12)}}
    tried = begun(attempts)
    assert [tried.count(word) for word in ("raise", "exit", "hang")] == [1, 2, 1]
    failures = {failure.id: failure for failure in Ledger(folder).failures()}
    assert "ValueError: this prompt cannot be drawn" in failures["0"].error or "refuses" in failures["0"].error
    assert "exit code 11" in failures["1"].error
    assert (failures["1"].tries, failures["2"].status) == (2, "timeout")
    assert children(attempts) == set()
    again = run(folder, file, attempts)
    assert (again[0], again[1]) == (0, [])  # what failed stays failed until it is retried


def test_a_world_whose_workers_die_as_they_start(tmp_path, prompts):
    code, lines, err = run(tmp_path / "batch", prompts, tmp_path / "attempts", "stillborn", "--workers", 1)
    assert (code, lines) == (75, [])
    assert "3 workers in a row did not start, the last one: exit code 9" in err
    assert begun(tmp_path / "attempts") == ["start"] * 3
    assert Ledger(tmp_path / "batch").failures() == []


def test_an_accelerator_that_is_lost_takes_its_worker_along(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("a\nlose\nb\nc\n")
    code, lines, _ = run(tmp_path / "batch", file, tmp_path / "attempts", "--workers", 1)
    assert code == 0
    assert dict(line.split() for line in lines) == {"0": "ok", "1": "failed", "2": "ok", "3": "ok"}
    assert begun(tmp_path / "attempts").count("lose") == 2
    workers = {line.split(" ")[0] for line in (tmp_path / "attempts").read_text().splitlines()}
    assert len(workers) == 2  # one for what came before it was lost again, at the end of the list


@pytest.mark.parametrize(("grace", "finishes"), [(25, True), (0, False)])
def test_sigterm_finishes_what_the_grace_allows(tmp_path, prompts, grace, finishes):
    folder, attempts = tmp_path / "batch", tmp_path / "attempts"
    process = start(folder, prompts, attempts, "--grace", grace, "--workers", 1, pause=0.5)
    wait_until(lambda: len(begun(attempts)) == 1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 75
    assert "SIGTERM" in err
    done = Ledger(folder).keys("units")
    assert len(done) == len(out.splitlines()) == (1 if finishes else 0)
    wait_until(lambda: not children(attempts))


def test_the_driver_is_killed_and_its_workers_go_with_it(tmp_path, prompts):
    folder, attempts = tmp_path / "batch", tmp_path / "attempts"
    process = start(folder, prompts, attempts, pause=0.5)
    wait_until(lambda: len(children(attempts)) == 2)
    process.kill()
    process.communicate()
    wait_until(lambda: not children(attempts))


def test_two_batches_race_for_one_folder(tmp_path, prompts, whole):
    folder = tmp_path / "batch"
    processes = [start(folder, prompts, tmp_path / f"attempts{i}", "--workers", 1, pause=0.05) for i in range(2)]
    ends = [process.communicate(timeout=LIMIT) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert objects(folder) == whole
