"""The experiment on the method: figures on scores whose figures are known, and a whole run on few images."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

from sp_rerank import load_scorer
from sp_rerank.train.mini.annotators import truth_of
from sp_rerank.train.mini.experiments import figures, maps, method, runs, ship
from sp_rerank.train.mini.experiments.figures import Scores, Truths
from sp_rerank.train.mini.experiments.method import BASELINE, METHOD, METHODS, SEARCH, Task
from sp_rerank.train.mini.grammar import parse
from sp_rerank.train.mini.scenes import draw_scene
from sp_rerank.train.recipe import read_recipe


def test_right_order_is_counted_by_prompt():
    truth = np.array([[3.0, 2, 1], [3, 2, 1]])
    assert figures.right_by_prompt(np.array([[9.0, 8, 7], [1, 2, 3]]), truth).tolist() == [1, 0]
    assert figures.right_by_prompt(np.array([[9.0, 9, 7], [2, 3, 1]]), truth).tolist() == [2 / 3, 2 / 3]


def test_steadiness_is_of_the_views_against_the_first():
    steady = np.array([[[0.0, 1.0, 2.0]]] * 3)
    assert (figures.order_flips(steady), figures.mean_shift(steady)) == (0, 0)
    turned = np.array([[[0.0, 1.0, 2.0]], [[2.0, 1.0, 0.0]]])
    assert figures.order_flips(turned) == 1
    assert figures.mean_shift(turned) == pytest.approx((2 + 0 + 2) / 3 / np.std([0, 1, 2]))


def test_rank_correlation_is_spearmans():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=(2, 5, 30))
    expected = [spearmanr(a, b).statistic for a, b in zip(scores, truth, strict=True)]
    assert figures.correlations(scores, truth) == pytest.approx(expected)


def test_a_scorer_that_sees_the_truth_gains_everything():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(12, 20))
    truths = Truths(truth, truth, truth, truth)
    perfect = Scores(np.stack([truth] * 3), np.stack([truth] * 3), truth)
    blind = Scores(-perfect.test, -perfect.other, -truth)
    best = figures.figures([perfect, perfect], blind, [blind], truths)
    assert (best.test.value, best.other.value) == (1, 1)
    assert (best.ahead.value, best.ahead_other.value) == (1, 1)
    assert (best.flips, best.shift, best.changes) == (0, 0, (0, 0))
    assert best.gain.value == best.gain_whole.value == 1
    assert best.correlation.value == pytest.approx(1)
    assert best.picked.low > 1
    itself = figures.figures([blind], blind, [blind], truths)
    assert (itself.picked.value, itself.ahead.value) == (0, 0)
    assert itself.gain.value < 0
    table = figures.markdown({"whole": best, "start": itself})
    assert table.count("\n") == 4
    assert "| whole | 100.0" in table


def test_every_method_is_the_recipe_with_other_losses(tmp_path):
    for name, changes in {**METHODS, **SEARCH}.items():
        recipe = method.recipe_of(Task(name, changes, 7, "careless", "full", 10, tmp_path, tmp_path))
        assert recipe.seed == 7
        losses = ("weighting", "stage_1_steps", "gap_scale", "gate_b", "gate_tau", "temperature", "ai_weight",
                  "ai_distance", "augment", "learning_rate")  # fmt: skip
        shipped = read_recipe("mini")
        assert replace(recipe, seed=0, **{key: getattr(shipped, key) for key in losses}) == shipped
    assert METHODS[METHOD] == ()
    assert METHODS[BASELINE] == ("weighting=uniform", "ai_weight=0.0")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Every domain with three prompts of four scenes, of which the last one is wrong."""
    folder, rng = tmp_path_factory.mktemp("images"), random.Random(0)
    for name in ("train", "drafts", "validation", "test", "other", "picks"):
        captions = ["a lemon", "a cat on the beach", "two pigs"]
        (folder / name).mkdir()
        (folder / name / "captions.json").write_text(json.dumps(captions))
        for number, caption in enumerate(captions):
            for j in range(4):
                image = Image.fromarray(draw_scene(parse(caption if j < 3 else "a frog in the snow"), rng).image)
                image.save(folder / name / f"{number:04}-{j:02}.png")
    return folder


def test_maps_and_tail_are_the_scorer(images):
    scorer = load_scorer("clip-mini")
    made = maps.cached_maps(scorer, images / "test", images / "maps.safetensors", maps.under_hpcc)
    assert made.shape[:3] == (3, 4, 1 + len(maps.RATIOS))
    captions = ["a lemon", "a cat on the beach", "two pigs"]
    found = runs.scores(maps.tail_of(scorer), captions, made)[0]
    files = [[Image.open(images / "test" / f"{i:04}-{j:02}.png") for j in range(4)] for i in range(3)]
    expected = [scorer.score(caption, some).tolist() for caption, some in zip(captions, files, strict=True)]
    assert found == pytest.approx(np.array(expected), abs=0.02)  # bfloat16
    assert torch.equal(maps.cached_maps(scorer, images / "test", images / "maps.safetensors", maps.as_it_is), made)


def test_runs_of_as_many_epochs_take_the_steps_for_it(tmp_path):
    task = Task("x", (), 0, "careless", "full", 250, tmp_path, tmp_path, 10)
    recipe = method.recipe_of(task)
    assert (recipe.steps, recipe.stage_1_steps) == (625, 104), "four prompts a step"
    assert task.folder != replace(task, epochs=None).folder
    assert method.recipe_of(replace(task, epochs=None)).steps == 300


def test_a_run_trains_the_tail_and_is_made_once(images, tmp_path, monkeypatch):
    task = Task(
        "x",
        ("steps=2", "stage_1_steps=1", "warmup_steps=1", "batch_size=12"),
        0,
        "noise-free",
        "full",
        3,
        images,
        tmp_path,
    )
    found = method.run(task)
    assert found["last"].test.shape == (6, 3, 4)
    assert found["last"].picks.shape == (3, 4)
    assert method.run_curve(task)[-1]["step"] == 2
    start = method.score_everything(maps.tail_of(load_scorer("clip-mini")), images, tmp_path)
    assert not np.array_equal(found["last"].picks, start.picks)
    monkeypatch.setattr(method, "train", lambda *_: pytest.fail("trained a second time"))
    assert np.array_equal(method.run(task)["last"].picks, found["last"].picks)


def test_what_a_tail_learned_goes_back_into_the_scorer():
    scorer = load_scorer("clip-mini")
    tail = maps.tail_of(scorer)
    with torch.no_grad():
        tail.clip.visual.attnpool.c_proj.bias += 1
    whole = maps.with_tail(scorer, tail)
    assert torch.equal(whole.clip.visual.attnpool.c_proj.bias, tail.clip.visual.attnpool.c_proj.bias)
    assert torch.equal(whole.clip.visual.conv1.weight, scorer.clip.visual.conv1.weight)
    assert not torch.equal(whole.clip.visual.attnpool.c_proj.bias, scorer.clip.visual.attnpool.c_proj.bias)


def test_the_scorer_that_ships_learns_from_finished_images_and_drafts(images, tmp_path):
    for name in ("train", "drafts"):
        truth_of(images / name)  # kept, so that no process is started for so few
    learned = ship.learned_from(images, tmp_path, 20, None)
    assert learned.captions == 2 * ["a lemon", "a cat on the beach", "two pigs"]
    assert [tuple(kept.shape[:2]) for kept in learned.maps] == 6 * [(4, 1 + maps.COPIES)]
    assert learned.ranks.shape == (6, 1, 4)
    assert (learned.ranks[:, 0, 3] == 4).all(), "a frog is no lemon"
    few = ship.learned_from(images, tmp_path, 20, 4)
    assert (len(few.captions), len(few.maps), len(few.ranks)) == (4, 4, 4)


def test_ship_keeps_the_best_step_with_a_calibration(images, tmp_path, monkeypatch):
    shutil.copytree(files("sp_rerank.mini") / "clip", tmp_path / "clip")
    (tmp_path / "clip" / "calibration.json").unlink()
    recipe = read_recipe("mini").with_overrides(["steps=2", "stage_1_steps=1", "warmup_steps=1", "batch_size=12"])
    for name in ("train", "drafts", "validation"):
        truth_of(images / name)
    first = ship.train_run(recipe, images, tmp_path, 20, None)
    ship.keep(first, recipe, "a test", images, tmp_path)
    kept = load_scorer(f"sp@{tmp_path / 'stable-preference'}")
    assert kept.name.startswith("stable-preference-mini@") and "seed 0, step 2) on a test" in kept.config.source
    assert (tmp_path / "stable-preference" / "calibration.json").is_file()
    assert (tmp_path / "clip" / "calibration.json").is_file()
    monkeypatch.setattr(ship, "train", lambda *_: pytest.fail("trained a second time"))
    assert np.array_equal(ship.train_run(recipe, images, tmp_path, 20, None).found, first.found)
