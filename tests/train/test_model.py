"""What training starts from: which parameters learn, and the optimizer over them."""

import pytest
import torch
from support.bright_world import make_encoder, make_recipe

from sp_rerank.errors import UsageError
from sp_rerank.train.model import build_optimizer, freeze, load_base, random_base
from sp_rerank.train.recipe import read_recipe


@pytest.mark.parametrize(
    ("trainable_image_blocks", "trainable_text_blocks", "share"), [(-1, -1, 1.0), (0, 0, 0.0), (2, 2, 0.5), (0, 1, 0.1)]
)
def test_freezing_marks_parameters(trainable_image_blocks: int, trainable_text_blocks: int, share: float):
    scorer = make_encoder()
    freeze(scorer, trainable_image_blocks, trainable_text_blocks)
    learning = {name for name, p in scorer.named_parameters() if p.requires_grad}
    assert ("clip.visual.conv1.weight" in learning) == (trainable_image_blocks == -1)
    assert ("clip.token_embedding.weight" in learning) == (trainable_text_blocks == -1)
    assert ("clip.text_projection" in learning) == ("clip.ln_final.bias" in learning) == (trainable_text_blocks != 0)
    assert "clip.logit_scale" in learning
    assert (len(learning) - 1) / (len(list(scorer.parameters())) - 1) >= share


RESNET = {"image_size": 32, "layers": [1, 2, 1, 1], "width": 4, "head_width": 32}


@pytest.mark.parametrize(("blocks", "learns", "frozen"), [(1, "layer4.0", "layer3.0"), (3, "layer2.1", "layer2.0")])
def test_the_last_blocks_of_a_resnet_learn(blocks: int, learns: str, frozen: str):
    scorer = make_encoder(vision_cfg=RESNET)
    freeze(scorer, blocks, 0)
    learning = {name for name, p in scorer.named_parameters() if p.requires_grad}
    assert f"clip.visual.{learns}.conv1.weight" in learning
    assert f"clip.visual.{frozen}.conv1.weight" not in learning
    assert "clip.visual.attnpool.c_proj.weight" in learning
    with pytest.raises(UsageError, match="the image tower has 5 blocks"):
        freeze(scorer, 6, 0)


def test_a_resnet_scores_in_training_as_when_it_is_used():
    """With statistics of the batch, an image's score would depend on what it is learned beside."""
    scorer = make_encoder(vision_cfg=RESNET)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    used = scorer.encode_image(images)
    assert torch.equal(scorer.train().encode_image(images), used)
    assert torch.allclose(scorer.encode_image(images[:1]), used[:1], atol=1e-5)


def test_more_blocks_than_there_are_is_an_error():
    with pytest.raises(UsageError, match="trainable_text_blocks is 3, but the text tower has 2 blocks"):
        freeze(make_encoder(), 1, 3)


def test_weight_decay_is_not_on_vectors():
    scorer = make_encoder()
    decayed, others = build_optimizer(scorer, make_recipe()).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.35, 0)
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in others["params"]} == {0, 1}
    assert len(decayed["params"]) + len(others["params"]) == len(list(scorer.parameters()))


def test_a_base_that_cannot_be_trained_is_refused():
    with pytest.raises(UsageError, match="expected a dual encoder such as clip-h, 'brightness' is a BrightnessScorer"):
        load_base(make_recipe(base="brightness"))
    with pytest.raises(UsageError, match="random weights need the name of a published dual encoder, got 'clip-mini'"):
        random_base(make_recipe(base="clip-mini"))


@pytest.mark.parametrize(
    ("name", "parameters", "learning"), [("clip-l", 427_616_513, 1.0), ("clip-h", 986_109_441, 0.52)]
)
def test_random_weights_have_the_real_size(name: str, parameters: int, learning: float):
    recipe = read_recipe(name)
    with torch.device("meta"):
        scorer = random_base(recipe)
    freeze(scorer, recipe.trainable_image_blocks, recipe.trainable_text_blocks)
    assert sum(p.numel() for p in scorer.parameters()) == parameters
    found = sum(p.numel() for p in scorer.parameters() if p.requires_grad) / parameters
    print(f"{found:.3f} of {name} learns")
    assert found == pytest.approx(learning, abs=0.01)
