"""Each example runs as its header says, and the tutorial cell by cell."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sp_rerank.storage.images import encode, open_image
from sp_rerank.train.mini.grammar import parse
from sp_rerank.train.mini.scenes import draw_scenes

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str, *words: str, folder: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=100).stdout


def test_every_example_is_run_here():
    names = {path.name for path in EXAMPLES.glob("*.py")} - {"vision_language.py"}  # what 05 and 06 share
    assert names == {
        "01_rank_a_folder.py",
        "02_drop_in_pipeline.py",
        "03_write_a_scorer.py",
        "04_modular_block.py",
        "05_vision_language_scorers.py",
        "06_compare_pairs.py",
    }


def test_rank_a_folder(tmp_path):
    from PIL import Image

    scenes = draw_scenes(8, seed=5)
    for i, scene in enumerate(scenes):
        png = encode(Image.fromarray(scene.image), parameters="", record={})
        (tmp_path / f"{i}.png").write_bytes(png)
    caption = scenes[3].description.caption
    assert parse(caption)
    first = example("01_rank_a_folder.py", str(tmp_path), caption, folder=tmp_path).splitlines()[0]
    assert first.endswith("3.png")  # of eight scenes, the one that shows the caption


def test_the_drop_in_pipeline(tmp_path):
    assert "seed" in example("02_drop_in_pipeline.py", "best.png", folder=tmp_path)
    assert open_image(tmp_path / "best.png").width >= 64


def test_the_modular_block(tmp_path):
    lines = example("04_modular_block.py", "best.png", folder=tmp_path).splitlines()
    by_block = [(line.split()[1], line.split()[2]) for line in lines]
    assert len(by_block) == 4
    assert by_block[0][0] == best_seed(tmp_path)
    assert open_image(tmp_path / "best.png").size == (256, 256)


def best_seed(folder: Path) -> str:
    """Of the same prompt, seeds and steps, by the pipeline that chooses."""
    return example("02_drop_in_pipeline.py", "other.png", folder=folder).splitlines()[0].split()[1]


def test_write_a_scorer(tmp_path):
    assert "seed" in example("03_write_a_scorer.py", "best.png", folder=tmp_path)
    assert open_image(tmp_path / "best.png").size == (256, 256)


def flat_images(folder: Path) -> None:
    from PIL import Image

    for number, color in enumerate(("red", "green", "blue", "white", "black")):
        (folder / f"{number}.png").write_bytes(encode(Image.new("RGB", (56, 56), color), parameters="", record={}))


def test_vision_language_scorers(tmp_path):
    flat_images(tmp_path)
    lines = example("05_vision_language_scorers.py", str(tmp_path), "a lemon", folder=tmp_path).splitlines()
    assert [line.split(",")[0] for line in lines[:5]] == [f"vqascore: rank {rank}" for rank in range(1, 6)]
    assert all("tie group" in line for line in lines) and len(lines) == 10


def test_compare_pairs(tmp_path):
    flat_images(tmp_path)
    lines = example("06_compare_pairs.py", str(tmp_path), "a lemon", folder=tmp_path).splitlines()
    assert sorted(line[-5:] for line in lines) == [f"{number}.png" for number in range(5)]
    utilities = [float(line.split("utility ")[1].split(":")[0]) for line in lines]
    assert utilities == sorted(utilities, reverse=True) and abs(sum(utilities)) < 0.01


def cells() -> list[str]:
    """The code of the tutorial's cells."""
    notebook = json.loads((EXAMPLES / "tutorial.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_cell(code: str, names: dict[str, Any]) -> Any:
    """What a notebook shows of a cell: the value of its last line, if that is an expression."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None


def test_the_tutorial_runs_cell_by_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shown = [run_cell(code, names) for code in cells()]
    pictures = [value._repr_html_().count("<img") for value in shown if hasattr(value, "_repr_html_")]
    assert pictures == [4, 4, 3, 3]
    assert (tmp_path / "runs" / "lemon" / "index.html").is_file()
    assert len(list((tmp_path / "runs" / "lemon" / "images").iterdir())) == 16
    assert shown[-1].size == (256, 256)
    printed = capsys.readouterr()
    assert "108 evaluations of the denoiser; complete" in printed.out
    assert "Spearman" in printed.out


def test_the_tutorial_is_kept_without_outputs() -> None:
    notebook = json.loads((EXAMPLES / "tutorial.ipynb").read_text(encoding="utf-8"))
    assert [cell for cell in notebook["cells"] if cell.get("outputs") or cell.get("execution_count")] == []
