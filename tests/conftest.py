"""What every test may use. Sockets are closed (pyproject.toml) and the hub is off for the whole suite."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import hypothesis
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported; workers are as many as threads would be

import support  # noqa: F401  # the mini world, where the installed package lacks it

# How long an example takes says more about what else runs than about the code. CI draws the same examples every time,
# elsewhere each run looks for new ones.
hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def mini():
    """The embedded pipeline in float32, for reading only."""
    from sp_rerank import load_pipeline

    return load_pipeline("mini")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """Seconds that this process has worked, or would have slept: other processes cannot make them more."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return lambda: time.process_time() + sum(slept)


@pytest.fixture
def fake_hub(socket_enabled):
    """Makes servers that stand for the hub; the test's own process may then open sockets."""
    from support.fake_hub import FakeHub

    started: list[FakeHub] = []

    def start(**how) -> FakeHub:
        started.append(FakeHub(**how))
        return started[-1]

    yield start
    for hub in started:
        hub.close()
