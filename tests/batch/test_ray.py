"""The engine ray, on a cluster of this machine: the same bytes as one process, whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.batch_worlds import ATTEMPTS, PAUSE
from support.runs import files_of

from sp_rerank.batch.ledger import Ledger

pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(900)

TESTS = Path(__file__).parents[1]
PROMPTS = 12
CALLS = 2  # of the pipeline for a prompt
LIMIT = 600  # seconds for a process, on a machine that does much else: a cluster takes half a minute of CPU to begin


def start(folder, prompts, attempts, *options, pause=0.0):
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), ATTEMPTS: str(attempts),
        PAUSE: str(pause), "OMP_NUM_THREADS": "1", "RAY_memory_monitor_refresh_ms": "0", "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)
    words = [sys.executable, "-m", "support.batch_driver", str(folder), str(prompts), *map(str, options)]
    return subprocess.Popen(
        words, cwd=TESTS, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def begun(attempts: Path) -> list[list[str]]:
    """[pid, prompt] of every call of the pipeline."""
    return [line.split(" ", 1) for line in attempts.read_text().splitlines()] if attempts.exists() else []


def wait_until(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("list") / "prompts.txt"
    file.write_text("".join(f"prompt {number}\n" for number in range(PROMPTS)))
    return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory, prompts):
    """What one local worker makes."""
    folder = tmp_path_factory.mktemp("whole")
    with start(folder / "batch", prompts, folder / "attempts", "--workers", 1) as process:
        assert process.wait(LIMIT) == 0
    return files_of(folder / "batch")


def test_a_worker_of_ray_is_killed(tmp_path, prompts, whole):
    folder, attempts = tmp_path / "batch", tmp_path / "attempts"
    with start(folder, prompts, attempts, "--engine", "ray", pause=0.3) as process:
        wait_until(lambda: len({pid for pid, _ in begun(attempts)}) == 2, process)
        os.kill(int(begun(attempts)[-1][0]), signal.SIGKILL)
        out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    assert Ledger(folder).failures() == []
    made = [line.split()[0] for line in out.splitlines() if line.endswith(" ok")]  # Ray prints there too
    assert sorted(made) == sorted(map(str, range(PROMPTS)))
    assert files_of(folder) == whole
    units = len(begun(attempts)) / CALLS
    print(f"\nray, one worker killed: {units:.1f} units begun for {PROMPTS}, all bytes the same")
    assert PROMPTS < units <= PROMPTS + 1


def test_the_driver_of_ray_is_killed(tmp_path, prompts, whole):
    folder, attempts = tmp_path / "batch", tmp_path / "attempts"
    with start(folder, prompts, attempts, "--engine", "ray", pause=0.3) as process:
        wait_until(lambda: len(Ledger(folder).keys("units")) >= 3, process)
        process.kill()
    with start(folder, prompts, attempts, "--engine", "ray") as process:
        assert process.wait(LIMIT) == 0
    assert files_of(folder) == whole
    assert len(begun(attempts)) / CALLS <= PROMPTS + 2  # those that were in hand
