"""The block of Modular Diffusers keeps the best images of each prompt, in the form in which it got them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers.modular_pipelines import SequentialPipelineBlocks
from PIL import Image

from sp_rerank.errors import UsageError
from sp_rerank.pipelines.block import KeepBestStep
from sp_rerank.scorers.brightness import BrightnessScorer

LEVELS = [0.2, 0.8, 0.4, 0.6]


def pipeline(scorer=None):
    blocks = SequentialPipelineBlocks.from_blocks_dict({"best": KeepBestStep()})
    built = blocks.init_pipeline()
    if scorer is not None:
        built.update_components(scorer=scorer)
    return built


def tensor() -> torch.Tensor:
    return torch.tensor(LEVELS).reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()


def keep(images, prompt="a lemon", **more):
    return pipeline(BrightnessScorer())(images=images, prompt=prompt, output=["images", "scores", "indices"], **more)


def test_the_best_come_first_in_the_form_in_which_they_came():
    array = tensor().permute(0, 2, 3, 1).numpy()
    pictures = [Image.fromarray((image * 255).round().astype("uint8")) for image in array]
    for images in (tensor(), array, pictures):
        out = keep(images, top_k=2)
        assert out["indices"] == [1, 3]
        assert out["scores"] == [pytest.approx(0.8, abs=1e-2), pytest.approx(0.6, abs=1e-2)]
        assert type(out["images"]) is type(images)
        for image, place in zip(out["images"], (1, 3), strict=True):
            assert np.array_equal(np.asarray(image), np.asarray(images[place]))


def test_each_prompt_has_its_best():
    out = keep(tensor(), prompt=["a lemon", "a cat"])
    assert out["indices"] == [1, 3]


def test_what_is_not_finite_comes_last():
    images = tensor()
    images[1] = math.nan
    assert keep(images, top_k=4)["indices"] == [3, 2, 0, 1]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"top_k": 5}, "top_k: expected 1 to 4, the images of a prompt, got 5"),
        ({"top_k": 0}, "top_k: expected 1 to 4"),
        ({"prompt": ["a", "b", "c"]}, "images: expected as many for each of 3 prompts, got 4 in all"),
    ],
)
def test_what_cannot_be_kept_is_refused(more, complaint):
    with pytest.raises(UsageError, match=complaint):
        keep(tensor(), **more)


def test_without_a_scorer_the_way_to_pass_one_is_named():
    with pytest.raises(UsageError, match=r"no scorer to choose with.*update_components\(scorer="):
        pipeline()(images=tensor(), prompt="a lemon")


def test_a_scorer_that_is_a_model_is_a_component(encoder):
    built = pipeline(encoder)
    assert built.components["scorer"] is encoder
    out = built(images=tensor(), prompt="a lemon", output="scores")
    assert out == [max(encoder.score("a lemon", tensor()).tolist())]


def test_the_block_describes_itself():
    assert [entry.name for entry in KeepBestStep().inputs] == ["images", "prompt", "top_k"]
    assert "scorer" in KeepBestStep().doc
