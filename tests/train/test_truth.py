"""The truth of the mini world: it finds the scene that a picture shows, and sees what people see."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from sp_rerank.diffusion.loading import find_dtype, load_pipeline
from sp_rerank.train.mini.experiments import truth as checks
from sp_rerank.train.mini.grammar import draw_description, parse
from sp_rerank.train.mini.images import draw_captions, make_images
from sp_rerank.train.mini.scenes import draw_scene
from sp_rerank.train.mini.training import pixels
from sp_rerank.train.mini.truth import COLOR, FULL, STRUCTURE, nearest_scenes, terms_of


@pytest.fixture(scope="module")
def groups():
    """Captions and eight images each of the embedded model."""
    pipe = load_pipeline("mini", dtype=find_dtype("auto", "mini", "cpu"))
    captions = draw_captions(random.Random(5), 5, held_out=False, known=set())
    return [(caption, make_images(pipe, [caption] * 8, 77 + 8 * i)) for i, caption in enumerate(captions)]


@pytest.mark.parametrize(
    "caption",
    [
        "a lemon wearing sunglasses on the beach",
        "a cat wearing a top hat",
        "three pandas in the snow",
        "two pigs",
        "a cactus above a car at sunset",
        "a frog and a robot on a pink background",
        "a chick right of a guitar on the grass",
    ],
)
def test_the_scene_that_was_drawn_is_found(caption: str):
    rng = random.Random(caption)
    drawn = pixels([draw_scene(parse(caption), rng) for _ in range(4)]) / 2 + 0.5
    found, where = nearest_scenes(caption, drawn)
    assert (found - drawn).abs().mean() < 0.004  # backgrounds of a kind differ by little
    assert 0.05 < where.float().mean() < 0.5


def test_what_is_wrong_lies_further_from_its_caption():
    asked = "a lemon left of a cat on the beach"
    others = (
        "a lemon right of a cat on the beach",
        "a lemon and a pig on the beach",
        "a lemon left of a cat in the snow",
        "a lemon on the beach",
    )
    rng = random.Random(1)
    scenes = pixels([draw_scene(parse(caption), rng) for caption in (asked, *others)]) / 2 + 0.5
    worth = terms_of(asked, scenes).utility()
    assert worth.argmax() == 0
    assert worth[0] > 2.3
    assert worth[1:].max() < 1.9


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the scheduler, with this numpy
def test_drawing_again_from_more_noise_costs():
    steps = checks.ladder(16)
    right = (steps[:, :-1] > steps[:, 1:]).mean(axis=0)
    print(f"ladder: {right}")
    assert right[0] >= 0.9
    assert right[1] >= 0.9
    assert right[2] >= 0.6


def test_a_shift_and_a_mirror_turn_few_pairs(groups):
    plain = checks.utilities(groups)
    assert checks.turned(plain, plain) == 0
    assert checks.turned(plain, -plain) == 1
    assert checks.turned(plain, checks.utilities(groups, checks.shifted)) <= 0.12
    assert checks.turned(plain, checks.utilities(groups, lambda images: images.flip(3))) <= 0.12


@pytest.mark.parametrize("name", checks.DAMAGES)
def test_damage_costs_and_more_damage_costs_more(groups, name: str):
    plain = checks.utilities(groups)
    weak, strong = (checks.utilities(groups, damage) for damage in checks.DAMAGES[name])
    assert (weak < plain).mean() >= 0.9
    assert (strong < plain).mean() >= 0.95
    assert (strong < weak).mean() >= 0.9


def test_style_size_and_brightness_do_not_matter(groups):
    plain = checks.utilities(groups)
    assert checks.spread_of_styles(10) < plain.std(axis=1).mean() / 2
    brightness = np.stack([images.mean(dim=(1, 2, 3)).numpy() for _, images in groups])
    within = [values - values.mean(axis=1, keepdims=True) for values in (brightness, plain)]
    assert abs(np.corrcoef(within[0].ravel(), within[1].ravel())[0, 1]) < 0.35  # of forty images


def test_the_halves_add_up(groups):
    caption, images = groups[0]
    terms = terms_of(caption, images)
    assert np.allclose(terms.utility(STRUCTURE) + terms.utility(COLOR), terms.utility(FULL))
    assert np.array_equal(terms_of(caption, images[:3]).utility(), terms.utility()[:3])


def test_a_prompt_outside_the_grammar_has_no_truth():
    with pytest.raises(ValueError, match="not a caption of the mini world"):
        terms_of("an astronaut", torch.zeros(1, 3, 64, 64))


def test_captions_of_every_kind_have_layouts():
    rng = random.Random(0)
    for _ in range(200):
        description = draw_description(rng)
        drawn = pixels([draw_scene(description, rng)]) / 2 + 0.5
        if rng.random() < 0.1:
            assert terms_of(description.caption, drawn).utility()[0] > 2.2
