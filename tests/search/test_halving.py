"""Halving: who goes on, that it is the image of the seed, and that nothing is scored twice."""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from support.loops import build_sd, sampler_of, seeds_of, waiting_loops

from sp_rerank.config import Round, Stage
from sp_rerank.errors import TryAgainError, UsageError
from sp_rerank.search.base import Scored
from sp_rerank.search.exhaustive import exhaustive
from sp_rerank.search.halving import halving

EARLY, LATE = Stage("preview", 2, 6), Stage("preview", 4, 6)
ROUNDS = (Round(1 / 3, 5), Round(2 / 3, 2))


@pytest.fixture(scope="module")
def pipe() -> Any:
    return build_sd()


@pytest.fixture(autouse=True, scope="module")
def no_loop_is_left():
    yield
    assert not waiting_loops()


def brightness(images: torch.Tensor) -> torch.Tensor:
    return images.float().mean(dim=(1, 2, 3))


def search(strategy: Any, sampler: Any, n: int = 8, top_k: int = 2, known: Any = None, score: Any = brightness):
    return strategy(sampler, score, seeds_of(n), top_k=top_k, prior=known or {})


def scores_by_stage(seen: list[Scored]) -> dict[str | None, dict[int, float]]:
    found: dict[str | None, dict[int, float]] = {}
    for scored in seen:
        found.setdefault(scored.stage, {}).update(zip(scored.batch.indices, scored.scores.tolist(), strict=True))
    return found


def best(scores: Mapping[int, float], keep: int) -> set[int]:
    return set(sorted(scores, key=lambda index: -scores[index])[:keep])


def test_the_best_previews_of_all_batches_go_on_and_are_the_images_of_their_seeds(pipe):
    every = {
        i: image
        for scored in search(exhaustive, sampler_of(pipe))
        for i, image in zip(scored.batch.indices, scored.batch.images, strict=True)
    }
    seen = list(search(halving(ROUNDS), sampler_of(pipe)))
    found = scores_by_stage(seen)
    assert list(found) == [EARLY, LATE, None]
    assert set(found[EARLY]) == set(range(8))
    assert set(found[LATE]) == best(found[EARLY], 5)
    assert set(found[None]) == best(found[LATE], 2)
    for scored in seen:
        assert scored.total == len(found[scored.stage])
        for index, image in zip(scored.batch.indices, scored.batch.images, strict=True):
            assert image.shape == every[index].shape and 0 <= image.min() <= image.max() <= 1
            assert scored.stage or torch.equal(image, every[index])
    # each stage counts its own; PNDM's loop of 6 steps has 7
    assert {(scored.stage, scored.batch.nfe) for scored in seen} == {(EARLY, 2), (LATE, 3), (None, 2)}


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_an_interrupted_search_goes_on_where_it_was_and_scores_nothing_twice(pipe, stop):
    scored: Counter[float] = Counter()

    def count(images: torch.Tensor) -> torch.Tensor:
        scores = brightness(images)
        scored.update(scores.tolist())
        return scores

    whole = scores_by_stage(list(search(halving(ROUNDS), sampler_of(pipe))))
    first = search(halving(ROUNDS), sampler_of(pipe), score=count)
    known = scores_by_stage([next(first) for _ in range(stop)])
    first.close()
    after = list(search(halving(ROUNDS), sampler_of(pipe), known=known, score=count))
    rest = scores_by_stage(after)
    together = {stage: {**known.get(stage, {}), **rest.get(stage, {})} for stage in whole}
    assert together == whole
    assert {(scored.stage, scored.batch.nfe) for scored in after} <= {(EARLY, 2), (LATE, 3), (None, 2)}
    assert sum(scored.values()) == sum(map(len, whole.values())) and max(scored.values()) == 1


def test_only_what_is_new_in_a_batch_is_scored(pipe):
    whole = scores_by_stage(list(search(halving(ROUNDS), sampler_of(pipe))))
    winner = max(whole[None], key=lambda index: whole[None][index])
    known = {stage: {i: score for i, score in scores.items() if i != winner} for stage, scores in whole.items()}
    sizes: list[int] = []

    def count(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return brightness(images)

    again = scores_by_stage(list(search(halving(ROUNDS), sampler_of(pipe), known=known, score=count)))
    assert sizes == [1, 1, 1]
    assert all(scores[winner] == whole[stage][winner] for stage, scores in again.items())


def test_a_round_can_weigh_the_scores_so_far(pipe):
    rounds = (Round(1 / 3, 5), Round(2 / 3, 2, None, (1.0, -1.0)))
    found = scores_by_stage(list(search(halving(rounds), sampler_of(pipe))))
    fell = {index: found[EARLY][index] - score for index, score in found[LATE].items()}
    assert set(found[None]) == best(fell, 2) != best(found[LATE], 2)


def test_a_finished_search_asks_for_nothing(pipe):
    known = scores_by_stage(list(search(halving(ROUNDS), sampler_of(pipe))))
    assert not list(search(halving(ROUNDS), sampler_of(pipe), known=known))


def finalists(seen: list[Scored]) -> set[int]:
    return set(scores_by_stage(seen)[None])


def test_a_score_that_is_not_finite_is_the_worst(pipe):
    def spoiled(images: torch.Tensor) -> torch.Tensor:
        scores = brightness(images)
        scores[0] = math.nan
        scores[1:2] = math.inf
        return scores

    found = list(search(halving([Round(1 / 3, 2)]), sampler_of(pipe), score=spoiled))
    assert finalists(found) == {2, 5}  # the third of each whole batch of three; the last batch has but two

    def nothing(images: torch.Tensor) -> torch.Tensor:
        return torch.full((len(images),), math.nan)

    assert finalists(list(search(halving([Round(1 / 3, 3)]), sampler_of(pipe), score=nothing))) == {0, 1, 2}


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        (((0.5, 1),), "stage 1 of the search keeps 1, fewer than the best 2"),
        (((0.3, 4), (0.6, 5)), "stage 2 of the search keeps 5 of 4"),
        (((0.3, 4), (0.35, 3)), r"fall on steps 2, 2; expected different ones from 1 to 5"),
        (((0.01, 4),), "fall on steps 0"),
        (((0.99, 4),), "fall on steps 6"),
    ],
)
def test_rounds_that_cannot_be(pipe, rounds, message):
    with pytest.raises(UsageError, match=message):
        list(search(halving([Round(*entry) for entry in rounds]), sampler_of(pipe)))


def test_memory_runs_out_above_two_images(pipe, monkeypatch):
    made = pipe.unet.forward

    def spoil(latents: torch.Tensor, *args: Any, **more: Any) -> Any:
        if len(latents) > 4:  # guidance doubles them
            raise torch.OutOfMemoryError("planted")
        return made(latents, *args, **more)

    monkeypatch.setattr(pipe.unet, "forward", spoil)
    sampler = sampler_of(pipe, batch_size=8)
    found = scores_by_stage(list(search(halving(ROUNDS), sampler)))
    assert sampler._limit == 2
    assert [len(scores) for scores in found.values()] == [8, 5, 2]


def test_memory_runs_out_while_scoring_and_what_is_scored_stays_scored(pipe):
    scored: list[int] = []

    def spoiled(images: torch.Tensor) -> torch.Tensor:
        if len(scored) == 2 and len(images) > 1:
            raise torch.OutOfMemoryError("planted")
        scored.append(len(images))
        return brightness(images)

    found = scores_by_stage(list(search(halving(ROUNDS), sampler_of(pipe), score=spoiled)))
    assert sum(scored) == sum(map(len, found.values())) == 8 + 5 + 2

    def never(images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("planted")

    with pytest.raises(TryAgainError, match="single image"):
        list(search(halving(ROUNDS), sampler_of(pipe), score=never))


def test_a_search_that_is_let_go_leaves_no_loop(pipe):
    running = search(halving(ROUNDS), sampler_of(pipe))
    next(running)
    assert waiting_loops()
    del running
    gc.collect()
    assert not waiting_loops()

    def fail(images: torch.Tensor) -> torch.Tensor:
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        list(search(halving(ROUNDS), sampler_of(pipe), score=fail))
