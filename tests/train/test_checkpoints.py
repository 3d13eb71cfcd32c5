"""Checkpoints are whole or absent, and a damaged one is passed over."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.children import in_child

from sp_rerank.errors import StorageError
from sp_rerank.storage import atomic
from sp_rerank.train import checkpoints

POSIX = pytest.mark.skipif(os.name == "nt", reason="fork and SIGKILL are POSIX")


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_is_told_by_its_hash(damaged: int, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for step in (5, 10, 15):
        checkpoints.save(tmp_path, step, {"weight": torch.full((3,), float(step))}, {"step": step})
    folders = sorted(path for path in (tmp_path / "checkpoints").iterdir() if path.is_dir())
    assert [folder.name for folder in folders] == ["step-000010", "step-000015"]
    for folder in folders[-damaged:]:
        content = bytearray((folder / "state.safetensors").read_bytes())
        content[-1] ^= 1
        (folder / "state.safetensors").write_bytes(content)
    if damaged == 1:
        loaded = checkpoints.load(tmp_path)
        assert loaded is not None
        assert loaded[1] == {"step": 10}
        assert "step-000015 is damaged" in caplog.text
        checkpoints.save(tmp_path, 15, {"weight": torch.zeros(3)}, {"step": 15})
        assert checkpoints.load(tmp_path)[1] == {"step": 15}  # pyright: ignore
    else:
        with pytest.raises(StorageError, match="every checkpoint is damaged"):
            checkpoints.load(tmp_path)


def die_at(operation: int, folder: Path) -> None:
    """Let this process be killed before its n-th operation on a file in a folder."""
    left = [operation]

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(("open", "os.", "shutil.")) and str(folder) in str(arguments):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), 9)

    sys.addaudithook(audit)


@POSIX
def test_killed_at_any_operation_of_a_save_a_checkpoint_is_left(tmp_path: Path):
    """Also where the best scorer's folder is replaced: there is always an old one or a new one."""

    def save(out: Path, step: int) -> None:
        checkpoints.save(out, step, {"weight": torch.full((3,), float(step))}, {"step": step})
        atomic.replace_folder(out / "best", lambda place: (place / "step").write_text(str(step)) and None)

    found = []
    for step in (1, 2):
        save(tmp_path / "begun", step)
    for operation in range(1, 200):
        out = tmp_path / str(operation)
        shutil.copytree(tmp_path / "begun", out)

        def die(out: Path = out, operation: int = operation) -> None:
            die_at(operation, out)
            save(out, 3)

        finished = in_child(die)
        loaded = checkpoints.load(out)
        assert loaded is not None
        assert loaded[0]["weight"].tolist() == [loaded[1]["step"]] * 3
        atomic.recover_folder(out / "best")
        found.append((loaded[1]["step"], int((out / "best" / "step").read_text())))
        save(out, 3)
        assert checkpoints.load(out)[1] == {"step": 3}  # pyright: ignore
        assert sorted(tree(out)) == sorted({
            "best/step",
            "checkpoints/latest.json",
            *(
                f"checkpoints/step-00000{step}/{name}"
                for step in (2, 3)
                for name in ("progress.json", "state.safetensors")
            ),
        })
        if finished:
            break
    else:
        pytest.fail("a save had no end")
    assert found == sorted(found)
    assert set(found) == {(2, 2), (3, 2), (3, 3)}
    print(f"killed at each of {len(found) - 1} operations")


def two_checkpoints(out: Path) -> Path:
    for step in (5, 10):
        checkpoints.save(out, step, {"weight": torch.full((3,), float(step))}, {"step": step})
    return out / "checkpoints" / "latest.json"


DAMAGED = {
    "empty": "",
    "torn": '{"schema": 1, "check',
    "another thing": "[1, 2]",
    "no schema": '{"checkpoints": []}',
    "no checkpoints": '{"schema": 1}',
    "none in it": '{"schema": 1, "checkpoints": []}',
    "no hashes": '{"schema": 1, "checkpoints": [{"folder": "step-000010"}]}',
    "empty hashes": '{"schema": 1, "checkpoints": [{"folder": "step-000010", "sha256": {}}]}',
    "a folder elsewhere": json.dumps({
        "schema": 1,
        "checkpoints": [{"folder": "../../x", "sha256": {"state.safetensors": "0" * 64, "progress.json": "0" * 64}}],
    }),
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("case", DAMAGED)
def test_with_a_damaged_pointer_the_newest_whole_checkpoint_is_taken(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    two_checkpoints(tmp_path).write_text(DAMAGED[case])
    loaded = checkpoints.load(tmp_path)
    assert loaded is not None
    assert loaded[1] == {"step": 10}
    assert "latest.json" in caplog.text
    assert "taking the checkpoints that lie beside it" in caplog.text
    checkpoints.save(tmp_path, 15, {"weight": torch.zeros(3)}, {"step": 15})
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["latest.json", "step-000010", "step-000015"]


def test_without_a_pointer_the_checkpoints_are_found_and_what_is_none_is_not(tmp_path: Path):
    pointer = two_checkpoints(tmp_path)
    pointer.unlink()
    (pointer.parent / "step-000020").mkdir()
    (pointer.parent / "step-000030").symlink_to(pointer.parent / "step-000010")
    (pointer.parent / f"step-000040{atomic.TEMPORARY_SUFFIX}").mkdir()
    loaded = checkpoints.load(tmp_path)
    assert loaded is not None
    assert loaded[1] == {"step": 10}


def test_without_a_pointer_a_torn_checkpoint_is_passed_over(tmp_path: Path):
    pointer = two_checkpoints(tmp_path)
    pointer.unlink()
    state = pointer.parent / "step-000010" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-5])
    loaded = checkpoints.load(tmp_path)
    assert loaded is not None
    assert loaded[1] == {"step": 5}


def test_without_a_checkpoint_a_run_begins(tmp_path: Path):
    assert checkpoints.load(tmp_path) is None
