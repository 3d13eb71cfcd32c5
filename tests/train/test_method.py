"""The figures of the experiment, on scores whose figures are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sp_rerank.train.mini.experiments import figures, method
from sp_rerank.train.mini.experiments.figures import Scores
from sp_rerank.train.mini.experiments.method import BASELINE, METHOD, METHODS, SEARCH, Task
from sp_rerank.train.preferences import ImageSource, PreferenceGroup
from sp_rerank.train.recipe import read_recipe


def groups_of(orders):
    return [
        PreferenceGroup.ranked("a lemon", [ImageSource(Path(f"{i}.png")) for i in order], order) for order in orders
    ]


def test_right_order_is_counted_by_prompt_and_view():
    groups = groups_of([[1, 2, 3], [1, 1, 2]])  # the second has two strict pairs
    scores = np.array([[[3.0, 2, 1], [5, 0, 3]], [[1, 2, 3], [3, 3, 3]]])
    scored = figures.with_scores(groups, scores)
    assert figures.right_by_prompt(scored).tolist() == [[1.0, 0.5], [0.0, 0.0]]


def test_unsteadiness_is_of_the_views_against_the_first():
    groups = groups_of([[1, 2, 3]])
    steady = np.array([[[0.0, 1.0, 2.0]]] * 3)
    assert figures.unsteadiness(figures.with_scores(groups, steady)) == (0, 0)
    turned = np.array([[[0.0, 1.0, 2.0]], [[2.0, 1.0, 0.0]]])
    flips, shift = figures.unsteadiness(figures.with_scores(groups, turned))
    assert flips == 1
    assert shift == pytest.approx((2 + 0 + 2) / 3 / np.std([0, 1, 2]))


def test_a_scorer_that_sees_what_the_judge_sees_gains_everything():
    rng = np.random.default_rng(0)
    judged = rng.normal(size=(12, 20))
    groups = groups_of([[1, 2, 3, 4]] * 12)
    right = np.tile([4.0, 3.0, 2.0, 1.0], (5, 12, 1))
    perfect = Scores(right, right, judged)
    blind = Scores(-right, -right, -judged)
    domains = {"test": groups, "other": groups}
    best = figures.figures([perfect, perfect], blind, [blind], domains, judged)
    assert best.test.value == best.other.value == best.gain.value == 1
    assert best.ahead.value == 1
    assert best.seeds == (1.0, 1.0)
    assert best.unsteady == best.flips == best.shift == 0
    assert best.picked.low > 0
    itself = figures.figures([blind], blind, [blind], domains, judged)
    assert itself.picked.value == itself.ahead.value == 0
    assert "both" in figures.markdown({METHOD: best})


@pytest.mark.parametrize("name", [*METHODS, *SEARCH])
def test_every_method_is_a_recipe(name, tmp_path):
    recipe = method.recipe_of(Task(name, (METHODS | SEARCH)[name], 3, tmp_path, tmp_path))
    assert recipe.seed == 3
    assert recipe.steps == read_recipe("mini").steps
    if name.startswith("stage 1"):
        assert recipe.stage(recipe.steps - 1) == 1
    if name == BASELINE:
        assert recipe.stage(0) == 0
        assert recipe.ai_weight == 0


def test_the_twin_recipe_is_the_baseline(tmp_path):
    twin, ours = read_recipe("mini-ce"), method.recipe_of(Task("", METHODS[BASELINE], 0, tmp_path, tmp_path))
    for key in ("steps", "batch_size", "learning_rate", "weighting", "ai_weight", "weight_decay", "warmup_steps"):
        assert getattr(twin, key) == getattr(ours, key)
