"""Each example runs as its header says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sp_rerank.storage.images import encode, open_image
from sp_rerank.train.mini.grammar import parse
from sp_rerank.train.mini.scenes import draw_scenes

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str, *words: str, folder: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=100).stdout


def test_every_example_is_run_here():
    names = {path.name for path in EXAMPLES.glob("*.py")} - {"vision_language.py"}  # what 04 and 05 share
    assert names == {
        "01_rank_a_folder.py",
        "02_drop_in_pipeline.py",
        "03_write_a_scorer.py",
        "04_vision_language_scorers.py",
        "05_compare_pairs.py",
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


def test_write_a_scorer(tmp_path):
    assert "seed" in example("03_write_a_scorer.py", "best.png", folder=tmp_path)
    assert open_image(tmp_path / "best.png").size == (256, 256)


def flat_images(folder: Path) -> None:
    from PIL import Image

    for number, color in enumerate(("red", "green", "blue", "white", "black")):
        (folder / f"{number}.png").write_bytes(encode(Image.new("RGB", (56, 56), color), parameters="", record={}))


def test_vision_language_scorers(tmp_path):
    flat_images(tmp_path)
    lines = example("04_vision_language_scorers.py", str(tmp_path), "a lemon", folder=tmp_path).splitlines()
    assert [line.split(",")[0] for line in lines[:5]] == [f"vqascore: rank {rank}" for rank in range(1, 6)]
    assert all("tie group" in line for line in lines) and len(lines) == 10


def test_compare_pairs(tmp_path):
    flat_images(tmp_path)
    lines = example("05_compare_pairs.py", str(tmp_path), "a lemon", folder=tmp_path).splitlines()
    assert sorted(line[-5:] for line in lines) == [f"{number}.png" for number in range(5)]
    utilities = [float(line.split("utility ")[1].split(":")[0]) for line in lines]
    assert utilities == sorted(utilities, reverse=True) and abs(sum(utilities)) < 0.01
