"""The command `train`: from a few prompts to a scorer, and on from an interruption."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.bright_world import make_encoder, make_groups

from sp_rerank import load_scorer
from sp_rerank.cli import train as commands
from sp_rerank.errors import SpRerankError, UsageError


def prepare(folder: Path, prompts: int) -> dict[str, Any]:
    """Preferences, a scorer to start from and a recipe in a folder; the arguments of the command."""
    make_encoder().save_pretrained(folder / "base")
    lines = [
        {
            "prompt": group.prompt or "none",
            "first": group.images[pair.first].path.name,
            "second": group.images[pair.second].path.name,
            "label": pair.label,
        }
        for group in make_groups(folder, prompts=prompts, images=3)
        for pair in group.pairs
    ]
    (folder / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "own.toml").write_text(f'name = "own"\nbase = "sp@{folder / "base"}"\nsteps = 4\nstage_1_steps = 1\n')
    return {
        "recipe": str(folder / "own.toml"), "data": [str(folder / "own.jsonl")], "validation": [],
        "out": folder / "run", "tracker": "none", "as_json": True,
    }  # fmt: skip


def test_the_command_trains_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = prepare(tmp_path, prompts=4) | {"override": ["batch_size=3", "validation_fraction=0.25"]}
    commands.train(**words)
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 4
    assert load_scorer(found["scorer"]).name.startswith("own@")
    with pytest.raises(SpRerankError, match="resume it, or begin anew"):
        commands.train(**words)
    commands.train(**words, resume=True)
    assert json.loads(capsys.readouterr().out) == found


@pytest.mark.parametrize("prompts", [2, 6])
def test_of_a_few_prompts_one_validates_and_best_is_there(
    prompts: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = prepare(tmp_path, prompts) | {"override": ["batch_size=3", "validation_fraction=0.1"]}
    commands.train(**words)
    written = capsys.readouterr()
    assert "validating on 1 groups" in written.err
    assert json.loads(written.out)["scorer"] == f"sp@{tmp_path / 'run' / 'best'}"
    assert json.loads(written.out)["best_accuracy"] is not None
    assert (tmp_path / "run" / "best").is_dir()


def test_of_one_prompt_none_validates_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    commands.train(**prepare(tmp_path, prompts=1), override=["batch_size=3"])
    written = capsys.readouterr()
    assert "no prompts to validate on" in written.err
    assert json.loads(written.out)["scorer"] == f"sp@{tmp_path / 'run' / 'last'}"


def test_a_scorer_is_uploaded_with_a_card(tmp_path: Path, fake_hub: Any):
    words = prepare(tmp_path, prompts=4)
    hub = fake_hub()
    command = [
        sys.executable, "-m", "sp_rerank", "train", words["recipe"], "--data", words["data"][0], "--out", words["out"],
        "--tracker", "none", "--set", "batch_size=3", "--set", "validation_fraction=0.25", "--simulated", "--json",
        "--push-to-hub", "me/own",
    ]  # fmt: skip

    def run(token: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, command)), env=hub.environment(token), capture_output=True, text=True, check=False
        )

    refused = run("")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.splitlines() == [
        "error: me/own: no token of the hub is known here; run `hf auth login`, or set HF_TOKEN"
    ]
    assert not words["out"].exists()  # before the work
    done = run("hf_test")
    assert done.returncode == 0, done.stderr
    folder = Path(json.loads(done.stdout)["scorer"].removeprefix("sp@"))
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    card = hub.files["README.md"].decode()
    assert "**The preferences are those of simulated people.**" in card
    assert json.loads((words["out"] / "training.json").read_text())["data"] in card
    assert hub.created == [{"name": "own", "organization": "me", "type": "model", "visibility": "private"}]


def test_what_is_said_of_a_card_needs_one(tmp_path: Path):
    with pytest.raises(UsageError, match="expected it with --push-to-hub"):
        commands.train(**prepare(tmp_path, prompts=2), simulated=True)
