"""The mini world: captions say what scenes show, held-out combinations stay out."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp_rerank.train.mini.grammar import BACKGROUNDS, OBJECTS, Description, draw_description, parse
from sp_rerank.train.mini.scenes import draw_scenes, drawing, styles_of
from sp_rerank.train.mini.training import pixels, scenes_of_step
from sp_rerank.train.mini.vocabulary import CONTEXT, build_tokenizer


@given(st.integers(0, 2**32), st.booleans())
def test_a_caption_says_what_the_description_is(seed, held_out):
    description = draw_description(random.Random(seed), held_out=held_out)
    assert parse(description.caption) == description
    assert description.held_out == held_out


def test_a_caption_of_another_world():
    with pytest.raises(ValueError, match="not a caption of the mini world"):
        parse("an astronaut riding a horse")


def test_the_captions_of_the_readme():
    assert parse("a lemon wearing sunglasses on the beach") == Description(
        "lemon", accessory="sunglasses", background="beach"
    )
    assert not parse("a lemon wearing sunglasses on the beach").held_out


def test_the_world_is_as_large_as_it_says():
    assert 32 <= len(OBJECTS) <= 48
    assert len(BACKGROUNDS) == 8
    assert min(len(styles_of(name)) for name in OBJECTS) >= 3
    held = [a for a in OBJECTS for b in OBJECTS if a < b and Description(a, b, relation="and").held_out]
    assert 0.05 < len(held) / (32 * 31 / 2) < 0.15


def test_scenes_are_what_their_truth_says():
    for scene in draw_scenes(200, seed=1):
        d = scene.description
        names = [placed.name for placed in scene.objects]
        assert names == [d.first] * d.count + ([d.second] if d.second else [])
        if d.relation == "left":
            assert scene.objects[0].box[2] <= scene.objects[1].box[2]
        if d.relation == "above":
            assert scene.objects[0].box[1] < scene.objects[1].box[1]
        for placed in scene.objects:
            left, top, right, bottom = (max(0, min(64, side)) for side in placed.box)
            assert scene.image[top:bottom, left:right].std() > 3, f"nothing drawn for {d.caption}"


def test_scenes_are_deterministic():
    first = scenes_of_step(3, 7, 16)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, scenes_of_step(3, 7, 16), strict=True))


def test_a_drawing_is_rasterized_once_for_all_scenes(monkeypatch):
    """Scenes are drawn anew in each training step; to rasterize a drawing takes longer than to paste it."""
    import resvg_py

    style = styles_of("lemon")[0]
    small = drawing(style, "lemon", 30)
    monkeypatch.setattr(resvg_py, "svg_to_bytes", lambda **_: pytest.fail("rasterized a second time"))
    assert drawing(style, "lemon", 30) is small
    assert max(drawing(style, "lemon", 31).shape[:2]) == 31


def test_every_word_is_read():
    tokenizer = build_tokenizer()
    captions = [draw_description(random.Random(i)).caption for i in range(500)]
    assert max(len(ids) for ids in tokenizer(captions).input_ids) <= CONTEXT
    decoded = tokenizer.batch_decode(tokenizer(captions).input_ids, skip_special_tokens=True)
    assert [text.strip() for text in decoded] == captions


def test_clip_and_pipeline_read_alike():
    from sp_rerank.scorers.clip import build_tokenizer as build_scorer_tokenizer
    from sp_rerank.train.mini.vocabulary import merges

    ours, theirs = build_tokenizer(), build_scorer_tokenizer(tuple(merges()))
    for text in ("a lemon on the beach", "three strawberries", "an astronaut, riding: 42 horses!"):
        assert ours(text).input_ids[1:-1] == theirs.encode(text)


def test_training_resumes_to_the_bit(tmp_path, monkeypatch):
    from torch import nn

    from sp_rerank.train.mini import training

    monkeypatch.setattr(training, "SAVE_EVERY", 13)

    def train(folder, killed_at=None):
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.Flatten(), nn.Linear(4 * 62 * 62, 1)
        net = nn.Sequential(*layers)

        def loss_of(step):
            if step == killed_at:
                raise KeyboardInterrupt
            return net(pixels(scenes_of_step(0, step, 4))).square().mean(), {}

        training.fit(net, loss_of, steps=30, peak=1e-3, folder=folder)
        return net

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", killed_at=20)
    whole, resumed = train(tmp_path / "whole"), train(tmp_path / "cut")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
