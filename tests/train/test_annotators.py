"""Simulated annotators: they agree as often as is asked for, prefer what the judge prefers, and write what we read."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from sp_rerank.train.mini import annotators
from sp_rerank.train.mini.annotators import WEIGHTS, Shown
from sp_rerank.train.mini.grammar import parse
from sp_rerank.train.mini.judge import TERMS, load_judge
from sp_rerank.train.readers import read_preferences


@pytest.mark.parametrize("agreement", [0.6, 0.65, 0.8])
def test_two_annotators_agree_as_often_as_asked_for(agreement):
    rng = np.random.default_rng(0)
    utility = rng.normal(size=(400, 8)) * rng.exponential(3, size=(400, 1))
    ranked = annotators.opinions(utility, annotators.noise_for(utility, agreement), 2, rng)
    first, second = np.triu_indices(8, 1)
    one, other = (ranked[:, k, first] < ranked[:, k, second] for k in (0, 1))
    measured = (one == other).mean()
    print(f"two annotators agree on {measured:.1%} of {one.size} pairs, {agreement:.0%} was asked for")
    assert measured == pytest.approx(agreement, abs=0.02)


def test_many_annotators_find_the_order_of_the_judge():
    utility = np.array([[0.0, 3.0, 1.0, 2.0]])
    ranked = annotators.opinions(utility, 1.0, 500, np.random.default_rng(1))
    assert annotators.ranks(-ranked.mean(axis=1)).tolist() == annotators.ranks(utility).tolist() == [[4, 1, 3, 2]]
    assert all(sorted(row) == [1, 2, 3, 4] for row in ranked[0].tolist())


def test_captions_are_new_and_survive_a_mirror():
    known: set[str] = set()
    learned = annotators.draw_captions(random.Random(0), 100, held_out=False, known=known)
    tested = annotators.draw_captions(random.Random(0), 50, held_out=True, known=known)
    assert len({*learned, *tested}) == 150
    assert {parse(caption).relation for caption in learned + tested} <= {None, "and", "above"}
    assert [parse(caption).held_out for caption in learned + tested] == [False] * 100 + [True] * 50


def test_something_wrong_is_one_thing():
    rng = random.Random(0)
    for caption in ("a lemon wearing sunglasses on the beach", "two pigs in the snow", "a cat above a car", "a frog"):
        asked = parse(caption)
        for _ in range(20):
            other = annotators.wrong(asked, rng)
            assert other != asked
            assert parse(other.caption) == other


def test_every_damage_shows():
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    for seed in range(12):
        damaged = annotators.damage(image, random.Random(seed))
        assert damaged.shape == image.shape
        assert 0 <= damaged.min() <= damaged.max() <= 1
        assert (damaged - image).abs().mean() > 0.01


def test_a_pool_prefers_what_it_cares_for():
    judge = load_judge()
    captions = annotators.draw_captions(random.Random(2), 6, held_out=True, known=set())
    shown = list(annotators.draw_domain(captions, 3))
    mini, other = (annotators.utilities(judge, shown, WEIGHTS[pool]) for pool in ("mini", "other"))
    assert mini.shape == other.shape == (6, annotators.IMAGES)
    assert not np.allclose(annotators.ranks(mini), annotators.ranks(other))
    assert set(WEIGHTS["other"]) == set(TERMS)
    # what was drawn as asked for, undamaged, against what is wrong
    assert (mini[:, :2].mean(axis=1) > mini[:, 4:].mean(axis=1)).all()


def test_the_files_are_read_as_the_layouts_they_imitate(tmp_path):
    rng = np.random.default_rng(0)
    shown = [Shown("a lemon", torch.rand(3, 3, 64, 64)), Shown("a cat", torch.rand(3, 3, 64, 64))]
    utility = rng.normal(size=(2, 3))
    for name in ("train", "validation", "test"):
        ranked = annotators.opinions(utility, 1.0, 4, rng)
        annotators.write_domain(tmp_path, name, shown, utility, ranked)
        groups = list(read_preferences(tmp_path / f"{name}.json"))
        each = 4 if name == "train" else 1
        assert [group.prompt for group in groups] == ["a lemon"] * each + ["a cat"] * each
        assert {len(group.pairs) for group in groups} == {3}
        assert {len(group.annotations) for group in groups} == {0 if name == "train" else 4}
        assert groups[0].images[0].open().size == (64, 64)
        if name == "train":
            assert [list(group.ranks or ()) for group in groups] == [row.tolist() for many in ranked for row in many]
        if name == "test":
            assert [list(group.ranks or ()) for group in groups] == annotators.ranks(utility).tolist()
