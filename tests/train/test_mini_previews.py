"""Preferences with previews: what is made, what is kept back, and that the previews are those of the images."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from sp_rerank import load_pipeline
from sp_rerank.diffusion.loading import find_dtype
from sp_rerank.train.mini import previews
from sp_rerank.train.mini.annotators import GROUPS, SEED, Shown, draw_captions
from sp_rerank.train.mini.previews import Block, WatchedSolver
from sp_rerank.train.readers import read_preferences

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # NumPy 2 in diffusers' DPM-Solver++


@pytest.fixture(scope="module")
def pipe():
    loaded = load_pipeline("mini", dtype=find_dtype("auto", "mini", "cpu"))
    loaded.scheduler = WatchedSolver.from_config(loaded.scheduler.config)
    return loaded


def test_a_block_is_written_once_and_read_as_it_was_drawn(pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(previews, "_pipeline", lambda: pipe)
    block = Block(30, ("a lemon",), tmp_path)
    previews.make(block)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 8 + 6 * 2, "two of eight are damaged and have no previews"
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in names}
    previews.make(block)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in names} == before
    (shown,) = previews.read(block)
    (drawn,) = previews.draw(pipe, ["a lemon"], SEED + 2 * 30)
    assert torch.allclose(shown.images, drawn.images, atol=1 / 500)
    for j, looks in drawn.previews.items():
        early, late = (looks - drawn.images[j]).abs().mean(dim=(1, 2, 3))
        assert late < early, "later previews are nearer to the image"


def test_no_prompt_of_a_test_is_learned_from():
    learned = {caption for block in previews.blocks(Path()) for caption in block.captions}
    captions = draw_captions(random.Random(SEED), 510, held_out=False, known=set())
    train = GROUPS["train"]
    assert set(captions[:train]) <= learned
    assert not set(captions[train : train + GROUPS["validation"] + GROUPS["test"]]) & learned


def test_the_file_is_in_the_layout_that_training_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    block = Block(0, ("a lemon", "a cat"), tmp_path / "images")
    block.folder.mkdir()
    for i in range(2):
        for file in block.files(i):
            Image.new("RGB", (64, 64), "red").save(block.folder / file)
    monkeypatch.setattr(previews, "read", lambda block: [Shown(c, torch.rand(8, 3, 64, 64)) for c in block.captions])
    assert previews.write_labels(tmp_path, [block]).shape == (2, 8)
    groups = list(read_preferences(tmp_path / "train.json"))
    assert [group.prompt for group in groups] == ["a lemon"] * 4 + ["a cat"] * 4
    assert all(sorted(group.ranks or ()) == list(range(1, 9)) for group in groups)
    assert groups[0].images[0].open().size == (64, 64)
