"""What a run folder is worth after its writer was killed, ran out of space or met another writer."""

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from sp_rerank.run.folder import RunDir

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGKILL, fork and RLIMIT_FSIZE are POSIX")

TESTS = Path(__file__).parents[1]
KILLS = 15
BATCHES = 13  # of 8, for 100 candidates


def command(folder, *options):
    return [sys.executable, "-m", "support.crash_writer", str(folder), *map(str, options)]


def write(folder, *options):
    return subprocess.run(command(folder, *options), cwd=TESTS, capture_output=True, text=True, timeout=110)


def tree(folder):
    """Every file of a run folder with its bytes, but for the lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert write(folder).returncode == 0
    assert RunDir.read(folder).verify() == []
    return tree(folder)


def live(folder, made, seconds):
    """Let a writer go on for some seconds, or to its end; whether it had to be killed."""
    options = ("--resume", "--made", made, "--pause", 0.03)
    with subprocess.Popen(command(folder, *options), cwd=TESTS, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        try:
            assert process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            return True
        return False


def corrupt_files(folder, whole):
    """Images under their final names, and committed rows, that are not those of the uninterrupted run."""
    images = [name for name in tree(folder) if name.endswith(".png")]
    corrupt = [name for name in images if (folder / name).read_bytes() != whole[name]]
    rows = RunDir.read(folder).rows.values() if (folder / "run.json").exists() else []
    return corrupt + [
        row.file for row in rows if hashlib.sha256((folder / row.file).read_bytes()).hexdigest() != row.sha256
    ]


def test_fifteen_kills_lose_nothing(tmp_path, whole):
    moment = random.Random()
    kills = corrupt = again = runs = 0
    while kills < KILLS:
        runs += 1
        folder, made = tmp_path / f"run{runs}", tmp_path / f"made{runs}"
        kills_here = 0
        while live(folder, made, moment.uniform(0, 0.2) if kills < KILLS else 60):
            kills_here, kills = kills_here + 1, kills + 1
            corrupt += len(corrupt_files(folder, whole))
        again_here = len(made.read_text().split()) - BATCHES
        assert again_here <= kills_here
        again += again_here
        assert tree(folder) == whole
        assert RunDir.read(folder).verify() == []
    print(
        f"\n{kills} SIGKILLs in {runs} run(s): {corrupt} corrupt files, {again} batches made again, manifests identical"
    )
    assert corrupt == 0


@pytest.mark.parametrize("way", ["run", "search", "grow"])
def test_death_at_every_file_operation(tmp_path, way):
    done = subprocess.run(
        [sys.executable, "-m", "support.deaths", str(tmp_path), way],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=110,
        check=True,
    )
    resumed = sorted(tmp_path.glob("died-*"))
    expected = tree(tmp_path / "whole")
    print(f"\n{way}: {len(resumed) - 1} deaths, one at each file operation: {done.stdout.strip()} unsound folders")
    assert len(resumed) > 50
    assert done.stdout.strip() == "0"
    assert [folder.name for folder in resumed if tree(folder) != expected] == []


@pytest.mark.parametrize(("limit", "filled"), [(9_000, "candidates.jsonl"), (20_000, "00060.png")])
def test_full_disk(tmp_path, whole, limit, filled):
    folder = tmp_path / "run"
    full = write(folder, "--file-limit", limit)
    assert full.returncode == 74
    assert filled in full.stderr
    assert "resume" in full.stderr
    assert len(full.stderr.splitlines()) == 1

    run = RunDir.read(folder)
    assert run.verify() == []
    assert sorted((folder / "images").iterdir()) == [run.image(index) for index in sorted(run.rows)]
    assert 0 < len(run.rows) < 100
    print(f"\nfull at {filled}: {len(run.rows)} rows = {len(run.rows)} verified images, no stray file")

    assert write(folder).returncode == 2  # --resume is asked for
    assert write(folder, "--resume").returncode == 0
    assert tree(folder) == whole


def test_two_writers(tmp_path):
    folder = tmp_path / "run"
    first = subprocess.Popen(
        command(folder, "--hold"),
        cwd=TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with first:
        assert [first.stdout.readline(), first.stdout.readline()] == ["ready\n", "open\n"]
        second = write(folder)
        other = write(folder, "--seed", 1)
        first.communicate()
    assert (first.returncode, second.returncode, other.returncode) == (0, 3, 2)
    assert "another process" in second.stderr
    assert "seed is 0, not 1" in other.stderr
    assert len(RunDir.read(folder).rows) == 100
    assert RunDir.read(folder).verify() == []
    print(f"\ntwo writers: exit {first.returncode} and {second.returncode}, 100 rows")
