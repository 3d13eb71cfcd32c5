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
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == {"01_rank_a_folder.py", "02_drop_in_pipeline.py", "03_write_a_scorer.py", "04_modular_block.py"}


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
