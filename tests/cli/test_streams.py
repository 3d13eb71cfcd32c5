"""Where the output goes: an encoding without the characters, a pipe that nothing reads, a full disk; and signals."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from sp_rerank import cli
from sp_rerank.diffusion import loading

RANK = [sys.executable, "-m", "sp_rerank", "rank", ".", "--prompt", "a lemon", "--scorer", "brightness"]
NAMES = ("レモン.png", ":cat:.png", "[bold]a.png", "b.png")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for level, name in enumerate(NAMES):
        Image.new("RGB", (16, 16), (level * 50,) * 3).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_output_survives_an_encoding(pictures: Path, encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(RANK, cwd=pictures, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode(encoding).splitlines()
    assert len(lines) == len(NAMES)
    for shown in (*NAMES[1:], r"\u30ec\u30e2\u30f3.png"):
        assert any(line.endswith(shown) for line in lines), lines


def test_a_pipe_that_nothing_reads_ends_quietly(pictures: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(RANK, cwd=pictures, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 141, done.stderr
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_a_full_disk_at_the_end_is_an_error_of_storage(pictures: Path, form: list[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*RANK, *form], cwd=pictures, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 74, done.stderr
    assert "the output cannot be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_sigterm_ends_a_run_as_ctrl_c_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "sp_rerank", "generate", "a :cat: [bold]lemon", "--model", "mini"]
    command += ["--scorer", "brightness", "--steps", "2", "--n", "64", "--batch-size", "4", "--out", "cut"]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    manifest = tmp_path / "cut" / "candidates.jsonl"
    while not manifest.exists() or not manifest.stat().st_size:
        assert run.poll() is None, run.stderr and run.stderr.read()
        time.sleep(0.01)
    run.send_signal(signal.SIGTERM)
    _, printed = run.communicate()
    assert run.returncode == 143, printed
    assert len(manifest.read_text().splitlines()) % 4 == 0
    (typed,) = [line.partition("Go on with: ")[2] for line in printed.splitlines() if "Go on with: " in line]
    assert shlex.split(typed) == ["sp-rerank", *command[3:], "--resume"]


def test_a_signal_leaves_its_handlers_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from support.doubles import SeededPipe

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(loading, "load_pipeline", lambda *_, **__: SeededPipe())
    words = [
        "generate",
        "a lemon",
        "--model",
        "mini",
        "--scorer",
        "brightness",
        "--n",
        "1",
        "--out",
        str(tmp_path / "r"),
    ]
    monkeypatch.setattr("sys.argv", ["sp-rerank", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert signal.getsignal(signal.SIGTERM) is before
