"""Steering: resampling that is fair, images that are repeatable, and schedulers that cannot branch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, PNDMScheduler
from hypothesis import given
from hypothesis import strategies as st
from support.loops import build_sd, sampler_of, seeds_of, waiting_loops

from sp_rerank.config import Stage
from sp_rerank.diffusion.trajectory import open_trajectories
from sp_rerank.errors import UsageError
from sp_rerank.search import steering as module
from sp_rerank.search.exhaustive import exhaustive
from sp_rerank.search.steering import resampled, steering

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # NumPy 2 in diffusers' Euler

SHARES = (1 / 3, 2 / 3)


@pytest.fixture(autouse=True)
def two_watched_steps(monkeypatch):
    monkeypatch.setattr(module, "SHARES", SHARES)


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = build_sd()
    pipe.scheduler = EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear")
    return pipe


@pytest.fixture(autouse=True, scope="module")
def no_loop_is_left():
    yield
    assert not waiting_loops()


def brightness(images: torch.Tensor) -> torch.Tensor:
    return images.float().mean(dim=(1, 2, 3))


def made(strategy: Any, pipe: Any, known: Any = None, score: Any = brightness) -> list[Any]:
    return list(strategy(sampler_of(pipe, 4), score, seeds_of(8), top_k=2, prior=known or {}))


def finished(seen: list[Any]) -> torch.Tensor:
    return torch.cat([scored.batch.images for scored in seen if scored.stage is None])


def test_it_is_drawn_towards_the_score_and_repeatable(pipe, monkeypatch):
    monkeypatch.setattr(module, "STRENGTH", 8.0)
    plain, steered, again = (made(strategy, pipe) for strategy in (exhaustive, *[steering()] * 2))
    stages = [Stage("preview", 2, 6), Stage("preview", 4, 6), None]
    assert [scored.stage for scored in steered] == stages * 2
    assert all(scored.total == 8 for scored in steered)
    assert torch.equal(finished(steered), finished(again))
    assert not torch.equal(finished(steered), finished(plain))
    before, after = (brightness(finished(scored)).mean().item() for scored in (plain, steered))
    print(f"mean brightness {before:.4f} by seeds alone, {after:.4f} steered")
    assert after > before
    images = finished(steered)
    assert len({image.sum().item() for image in images}) == len(images)  # copies went different ways


def test_without_strength_it_makes_the_images_of_the_seeds(pipe, monkeypatch):
    monkeypatch.setattr(module, "STRENGTH", 0.0)
    assert torch.equal(finished(made(steering(), pipe)), finished(made(exhaustive, pipe)))


def test_an_interrupted_search_makes_the_same_and_scores_nothing_twice(pipe):
    whole = made(steering(), pipe)
    known: dict[Any, dict[int, float]] = {}
    for scored in whole[:4]:  # the first batch, and the first previews of the second
        known.setdefault(scored.stage, {}).update(zip(scored.batch.indices, scored.scores.tolist(), strict=True))
    scored = []

    def count(images: torch.Tensor) -> torch.Tensor:
        scored.append(len(images))
        return brightness(images)

    rest = made(steering(), pipe, known=known, score=count)
    assert [scored.batch.indices for scored in rest] == [(4, 5, 6, 7)] * 3
    assert torch.equal(finished(rest), finished(whole)[4:])
    assert sum(scored) == 8


def test_a_copy_takes_the_reward_of_its_ancestor_along(pipe, monkeypatch):
    monkeypatch.setattr(module, "STRENGTH", 50.0)
    answers = iter([[0.0, 0.0, 0.0, 9.0], [9.0] * 4, [9.0] * 4])
    sampler = sampler_of(pipe, 4)
    search = steering()(sampler, lambda images: torch.tensor(next(answers)), seeds_of(4), top_k=2, prior={})
    with open_trajectories(sampler, seeds_of(4), (2, 4)) as (trajectory,):
        trajectory.resample(0, [3, 3, 3, 3])  # and never again: none has gained since
        assert torch.equal(finished(list(search)), trajectory.finish().images)


def test_scores_that_are_not_finite_have_no_weight(pipe):
    def spoiled(images: torch.Tensor) -> torch.Tensor:
        return torch.full((len(images),), math.nan)

    assert torch.equal(finished(made(steering(), pipe, score=spoiled)), finished(made(exhaustive, pipe)))


def test_a_scheduler_without_noise_is_refused():
    pipe = build_sd()
    assert isinstance(pipe.scheduler, PNDMScheduler)
    with pytest.raises(UsageError, match=r"PNDMScheduler .* draws no noise.*EulerAncestralDiscrete"):
        made(steering(), pipe)


@given(
    st.lists(st.floats(-20, 20) | st.sampled_from([math.nan, math.inf, -math.inf]), min_size=1, max_size=20),
    st.floats(0, 0.99),
)
def test_every_place_is_taken_as_often_as_its_weight_says(log_weights, offset):
    ancestors = resampled(log_weights, offset)
    finite = [weight for weight in log_weights if math.isfinite(weight)]
    if not finite:
        assert ancestors == list(range(len(log_weights)))
        return
    weights = [math.exp(weight) if math.isfinite(weight) else 0.0 for weight in log_weights]
    for place, weight in enumerate(weights):
        expected = len(weights) * weight / sum(weights)
        assert abs(ancestors.count(place) - expected) < 1 + 1e-6
        if ancestors.count(place):
            assert ancestors[place] == place
