import numpy as np
import pytest
import torch

import sp_rerank
from sp_rerank.errors import UsageError
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.scorers.clip import DualEncoder

PROMPTS = ("a lemon", "a lemon", "two cats")
IMAGES = torch.rand(3, 3, 40, 50, generator=torch.Generator().manual_seed(0))


def test_a_reward_is_the_score(encoder: DualEncoder):
    scores, info = sp_rerank.as_reward_fn(encoder)(IMAGES, PROMPTS, [{}, {}, {}])
    assert torch.equal(scores, encoder.score(list(PROMPTS), IMAGES))
    assert (scores.dtype, scores.shape, scores.device.type, info) == (torch.float32, (3,), "cpu", {})


def test_an_array_of_bytes_is_scored_as_the_tensor_that_it_came_from(encoder: DualEncoder):
    array = IMAGES.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    reward = sp_rerank.as_reward_fn(encoder)
    assert torch.equal(reward(array, PROMPTS, None)[0], reward(IMAGES, PROMPTS, ({},) * 3)[0])
    array.setflags(write=False)
    assert reward(array, PROMPTS, None)[0].isfinite().all()


def test_trainers_can_use_it(encoder: DualEncoder):
    """What ddpo-pytorch, trl and Flow-GRPO do with the result."""
    images = IMAGES.half().requires_grad_()
    with torch.enable_grad():
        scores, info = sp_rerank.as_reward_fn(encoder)(images, PROMPTS, [{}] * 3)
    assert torch.as_tensor(scores, device="cpu").float().shape == (3,)
    assert torch.cat([scores, scores]).numpy().mean() == pytest.approx(scores.mean().item())
    assert [f"{reward:.2f}" for reward in scores] == [f"{reward.item():.2f}" for reward in scores]
    weighted = [0.5 * score for score in scores]
    assert torch.as_tensor(weighted).tolist() == (0.5 * scores).tolist()
    assert (scores.requires_grad, info) == (False, {})


def test_only_the_image_that_is_not_finite_has_no_reward():
    images = IMAGES.clone()
    images[1, 0, 0, 0] = torch.nan
    scores, _ = sp_rerank.as_reward_fn(BrightnessScorer())(images, PROMPTS, None)
    assert scores.isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (IMAGES.mul(255).byte(), "torch.uint8"),
        (IMAGES[0], r"\(3, 40, 50\)"),
        (IMAGES.permute(0, 2, 3, 1), r"\(3, 40, 50, 3\) of torch.float32"),
        (IMAGES.numpy(), r"\(3, 3, 40, 50\) of float32"),
        (np.zeros((3, 3, 40, 50), np.uint8), r"\(3, 3, 40, 50\) of uint8"),
        ([IMAGES[0]] * 3, "a list"),
    ],
)
def test_other_images_are_refused(images, got: str):
    with pytest.raises(UsageError, match=f"got .*{got}"):
        sp_rerank.as_reward_fn(BrightnessScorer())(images, PROMPTS, None)


def test_the_number_of_prompts_must_fit():
    with pytest.raises(UsageError, match="got 2 prompts, 3 images"):
        sp_rerank.as_reward_fn(BrightnessScorer())(IMAGES, PROMPTS[:2], None)
