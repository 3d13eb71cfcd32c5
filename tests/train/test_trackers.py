"""Trackers by name through accelerate: real TensorBoard, and a stand-in for a package that is not installed here."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from pathlib import Path

import pytest
from accelerate import tracking
from accelerate.utils import LoggerType

from sp_rerank.errors import UsageError
from sp_rerank.train.metrics import Tracker, check_tracker

RECIPE = {"name": "a", "steps": 3, "augment": False, "learning_rate": 0.1}

WANDB = """
import json, os
class Config:
    def update(self, values, **more): note("config", values)
config = Config()
class Run:
    def log(self, values, step=None):
        if os.environ.get("WANDB_FAILS"): raise RuntimeError("the network is\\ndown")
        note("log", {**values, "step": step})
    def finish(self): note("finish", {})
def note(what, values):
    with open(os.environ["WANDB_NOTES"], "a") as file: file.write(json.dumps([what, values]) + "\\n")
def init(**how):
    if os.environ.get("WANDB_REFUSES"): raise ValueError("no API key configured")
    note("init", how)
    return Run()
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A package of that name, as far as accelerate uses it; its notes."""
    site = tmp_path / "site"
    (site / "wandb").mkdir(parents=True)
    (site / "wandb" / "__init__.py").write_text(WANDB)
    (site / "wandb-1.0.dist-info").mkdir()
    (site / "wandb-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: wandb\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("WANDB_NOTES", str(tmp_path / "notes"))
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.WANDB])  # accelerate looks when it is imported
    importlib.invalidate_caches()
    yield lambda: [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
    sys.modules.pop("wandb", None)


def write(out: Path, kind: str, *rows: dict, step: int = 0) -> None:
    out.mkdir(exist_ok=True)
    with Tracker(out, kind, step, True, RECIPE) as tracker:
        for row in rows:
            tracker.write(row)


def test_tensorboard_gets_the_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path / "run", "tensorboard", {"step": 1, "loss": 0.5, "gate": None}, {"step": 2, "loss": 0.25})
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_another_tracker_is_found_by_its_name(tmp_path, wandb):
    write(tmp_path / "run", "wandb", {"step": 1, "loss": 0.5, "gate": None})
    (begun, how), config, logged, finished = wandb()
    assert (begun, how["project"], how["name"], how["resume"]) == ("init", "sp-rerank", "run", "allow")
    assert config == ["config", RECIPE]
    assert logged == ["log", {"loss": 0.5, "step": 1}]
    assert finished == ["finish", {}]
    write(tmp_path / "run", "wandb", {"step": 2, "loss": 0.2}, step=1)
    assert wandb()[4][1]["id"] == how["id"]  # a run that goes on is the same run


def test_a_tracker_that_fails_does_not_end_the_training(tmp_path, wandb, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_FAILS", "1")
    with caplog.at_level(logging.WARNING, "sp_rerank"):
        write(tmp_path / "run", "wandb", {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.2})
    assert [record.getMessage() for record in caplog.records] == [
        "the tracker wandb failed, training goes on without it: RuntimeError: the network is down"
    ]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_tracker_that_cannot_begin_is_one_line(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_REFUSES", "1")
    with pytest.raises(UsageError, match="'wandb' cannot begin: ValueError: no API key configured; or take"):
        Tracker(tmp_path, "wandb", 0, True, RECIPE)


def test_what_is_no_tracker_or_not_installed(tmp_path):
    with pytest.raises(UsageError, match=r"expected a tracker out of .*mlflow.*tensorboard.*wandb.*none, got 'wandbb'"):
        check_tracker("wandbb")
    with pytest.raises(UsageError, match="'aim' is not installed; run `pip install 'aim'`, or take 'none'"):
        check_tracker("aim")
    write(tmp_path, "none", {"step": 1, "loss": 0.5})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_only_one_process_tells_a_tracker(tmp_path, wandb):
    with Tracker(tmp_path, "wandb", 0, False, RECIPE) as tracker:
        tracker.write({"step": 1, "loss": 0.5})
    assert not (tmp_path / "notes").exists()
