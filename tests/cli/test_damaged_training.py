"""Recipes, training folders and calibrations that are damaged or hostile: one line and an exit code, no traceback."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image
from support.bright_world import make_encoder
from support.mutations import TEXTS, mutations

from sp_rerank import cli, load_scorer
from sp_rerank.train.recipe import Recipe

SOUND, USAGE, STORAGE = 0, 2, 74
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: the exit code and what it said. Any other exception is a failure."""

    def called(*words: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["sp-rerank", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(str(stop.value.code)), capsys.readouterr().err

    return called


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Preferences of two pictures, a scorer to start from and a recipe."""
    folder = tmp_path_factory.mktemp("training")
    make_encoder().save_pretrained(folder / "base")
    for name, level in (("a.png", 250), ("b.png", 20)):
        Image.new("RGB", (32, 32), (level,) * 3).save(folder / name)
    rows = [{"prompt": p, "first": "a.png", "second": "b.png", "label": y} for p, y in (("x", 1), ("y", 0), ("z", 1))]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.toml").write_text(
        f'name = "own"\nbase = "sp@{folder / "base"}"\nsteps = 2\nstage_1_steps = 1\nbatch_size = 2\nsave_every = 1\n'
    )
    return folder


def training(place: Path, out: Path, *words: str) -> list[object]:
    return ["train", place / "own.toml", "--data", place / "own.jsonl", "--out", out, "--tracker", "none", *words]


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    """A finished run of two steps, a checkpoint each."""
    out = place / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr("sys.argv", ["sp-rerank", *map(str, training(place, out))])
        cli.main()
    assert stop.value.code == 0
    return out


def one_line(said: str) -> bool:
    return "Traceback" not in said and said.count("error: ") <= 1 and len(max(said.splitlines(), key=len)) < 2_000


@pytest.mark.parametrize("file", ["training.json", "checkpoints/latest.json", "progress.json"])
def test_a_damaged_training_folder_is_resumed_or_refused(
    file: str, place: Path, trained: Path, run: Run, tmp_path: Path
):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    (newest,) = sorted((out / "checkpoints").glob("step-*"))[-1:]
    target = newest / file if file == "progress.json" else out / file
    if file == "progress.json":  # its hash would give it away
        (out / "checkpoints" / "latest.json").unlink()
    sound, codes = target.read_bytes(), []
    for damaged in mutations(json.loads(sound), depth=1 if file == "training.json" else 99):
        target.write_bytes(damaged)
        code, said = run(*training(place, out, "--resume"))
        assert code in (SOUND, USAGE, STORAGE), (damaged[:200], said)
        assert one_line(said), (damaged[:200], said)
        assert target.read_bytes() == damaged or code == SOUND
        codes.append(code)
    print(f"{file}: {len(codes)} mutations, exit codes { {code: codes.count(code) for code in set(codes)} }")
    if file == "checkpoints/latest.json":  # but for a schema that only a newer version could have written
        assert codes.count(SOUND) >= len(codes) - 5
    target.write_bytes(sound)
    assert run(*training(place, out, "--resume"))[0] == SOUND


WRONG_TOML = (
    "true", "-1", "0", "1" + "0" * 400, "1" * 5_000, "1e400", "nan", '""', '"x"', '"a\\nb"', "[]", "{}", "2026-01-01",
    "[" * 5_000 + "]" * 5_000,
)  # fmt: skip


def test_a_damaged_recipe_is_one_line(place: Path, run: Run, tmp_path: Path):
    """The data are missing, so that a recipe that is sound after all ends there."""
    recipe, count = tmp_path / "own.toml", 0
    texts = [text.encode("latin-1") for text in TEXTS]
    for field in fields(Recipe):
        others = {"name": '"x"', "base": '"clip-mini"'}
        for value in WRONG_TOML:
            lines = others | {field.name: value}
            texts.append("\n".join(f"{key} = {text}" for key, text in lines.items()).encode())
    for text in texts:
        recipe.write_bytes(text)
        code, said = run("train", recipe, "--data", tmp_path / "none.jsonl", "--out", tmp_path / "out")
        assert code == USAGE, (text[:200], said)
        assert said.count("error: ") == 1, (text[:200], said)
        assert one_line(said), (text[:200], said)
        assert not (tmp_path / "out").exists()
        count += 1
    print(f"{count} damaged recipes")
    for assignment in ("seed", "seed=" + "[" * 5_000, "seed=" + "9" * 5_000, "=", "beta_1=inf", "name=a@b"):
        code, said = run(*training(place, tmp_path / "out", "--set", assignment))
        assert code == USAGE
        assert one_line(said)


def test_a_damaged_calibration_is_one_line(place: Path, run: Run, tmp_path: Path):
    weights = tmp_path / "scorer"
    shutil.copytree(place / "base", weights)
    scorer = load_scorer(f"sp@{weights}")
    sound = {"scorer": scorer.name, "temperature": 0.1, "data": "d", "pairs": 4, "error": 0.1, "simulated": False}
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(place / name, images)
    count = refused = 0
    for damaged in mutations(sound):
        (weights / "calibration.json").write_bytes(damaged)
        code, said = run("rank", images, "--prompt", "a lemon", "--scorer", f"sp@{weights}")
        assert code in (SOUND, USAGE), (damaged[:200], said)
        assert not said or one_line(said), (damaged[:200], said)
        count += 1
        refused += code == USAGE
    print(f"{count} damaged calibrations, {refused} refused")
    assert 3 * refused > 2 * count
