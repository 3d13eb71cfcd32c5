"""The command `train`."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.bright_world import make_encoder, make_groups

from sp_rerank import load_scorer
from sp_rerank.cli import train as commands
from sp_rerank.errors import SpRerankError


def test_the_command_trains_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    groups = make_groups(tmp_path, prompts=4, images=3)
    make_encoder().save_pretrained(tmp_path / "base")
    lines = [
        {
            "prompt": group.prompt or "none",
            "first": group.images[pair.first].path.name,
            "second": group.images[pair.second].path.name,
            "label": pair.label,
        }
        for group in groups
        for pair in group.pairs
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "own.toml").write_text(f'name = "own"\nbase = "sp@{tmp_path / "base"}"\nsteps = 4\nstage_1_steps = 1\n')
    words: dict[str, Any] = {
        "data": [str(tmp_path / "own.jsonl")], "validation": [],
        "override": ["batch_size=3", "validation_fraction=0.25"],
        "out": tmp_path / "run", "tracker": "none", "as_json": True,
    }  # fmt: skip
    commands.train(str(tmp_path / "own.toml"), **words)
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 4
    assert load_scorer(found["scorer"]).name.startswith("own@")
    with pytest.raises(SpRerankError, match="--resume goes on"):
        commands.train(str(tmp_path / "own.toml"), **words)
    commands.train(str(tmp_path / "own.toml"), **words, resume=True)
    assert json.loads(capsys.readouterr().out) == found
