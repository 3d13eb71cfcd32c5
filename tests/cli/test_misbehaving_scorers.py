"""Scorers of other packages that break their contract: one line and one exit code, the same in every command."""

import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from support.doubles import SeededPipe
from support.painted_runs import make_run
from support.preference_files import put, put_json

from sp_rerank import cli
from sp_rerank.diffusion import loading
from sp_rerank.scorers.brightness import BrightnessScorer

USAGE, NOTHING = 2, 4


def plugin(score=None, name="ours"):
    """A scorer whose score is a function of the images' number, or BrightnessScorer's own."""

    class Ours(BrightnessScorer):
        def score(self, prompt, images):
            return super().score(prompt, images) if score is None else score(len(images))

    Ours.name = name
    return lambda device, dtype: Ours()


def fail(*_, **__):
    raise RuntimeError("no weights\nin the cache")


def load_fails():
    raise ImportError("no module named their_dependency")


MISBEHAVING = {
    "does not import": (load_fails, USAGE, "does not import: ImportError: no module named their_dependency"),
    "builder raises": (lambda: fail, USAGE, "cannot be built: RuntimeError: no weights in the cache"),
    "builder gives nothing": (lambda: lambda device, dtype: None, USAGE, "expected an object with a name"),
    "no name": (lambda: plugin(name=None), USAGE, "name"),
    "raises": (lambda: plugin(fail), USAGE, "scorer ours failed: RuntimeError: no weights in the cache"),
    "too few": (lambda: plugin(lambda n: torch.zeros(n - 1)), USAGE, "expected a score for each of"),
    "a list": (lambda: plugin(lambda n: [0.5] * n), USAGE, "got a list"),
    "None": (lambda: plugin(lambda n: None), USAGE, "got None"),
    "two axes": (lambda: plugin(lambda n: torch.zeros(n, 1)), USAGE, "got shape"),
    "not finite": (lambda: plugin(lambda n: torch.full((n,), torch.nan)), NOTHING, ""),
    "well": (lambda: plugin(), 0, ""),
}
COMMANDS = ("rank", "generate", "compare", "evaluate")


@pytest.fixture
def words(tmp_path):
    """Each command as it would be typed, but for the scorer."""
    put(tmp_path / "images", "a.png", level=10)
    put(tmp_path / "images", "b.png", level=200)
    pairs = {"prompt": "x", "image_path": ["images/a.png", "images/b.png"], "rank": [2, 1]}
    data = put_json(tmp_path / "test.json", [pairs])
    run = make_run(tmp_path / "run", {"other": [0.1, 0.2, 0.3]})
    return {
        "rank": ["rank", tmp_path / "images", "--prompt", "x"],
        "generate": ["generate", "x", "--model", "mini", "--n", "4", "--steps", "1", "--out", tmp_path / "out"],
        "compare": ["compare", run.path],
        "evaluate": ["evaluate", "--data", data],
    }


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", MISBEHAVING)
def test_a_scorer_that_misbehaves_ends_every_command_alike(words, kind, command, monkeypatch, capsys):
    load, code, said = MISBEHAVING[kind]
    point = SimpleNamespace(name="ours", dist=None, module="their.package", load=load)
    real = metadata.entry_points
    ours = {"sp_rerank.scorers": [point]}
    monkeypatch.setattr(metadata, "entry_points", lambda **which: ours.get(which.get("group")) or real(**which))
    monkeypatch.setattr(loading, "load_pipeline", lambda *_, **__: SeededPipe())
    monkeypatch.setattr(sys, "argv", ["sp-rerank", *map(str, words[command]), "--scorer", "ours"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    text = capsys.readouterr().err
    if kind == "not finite" and command == "evaluate":
        code = 0  # what a scorer that is never finite gets right is a figure like another
    assert int(str(stop.value.code or 0)) == code, text
    assert text.count("error: ") == (code != 0)
    assert "Traceback" not in text
    assert said in text
