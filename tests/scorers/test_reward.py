from concurrent import futures

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import to_pil_image

import sp_rerank
from sp_rerank.errors import UsageError
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.scorers.reward import as_caption_reward_fn

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


def test_ddpo_pytorch_calls_it(encoder: DualEncoder):
    """kvablack/ddpo-pytorch, scripts/train.py: in a thread, on half precision; tuples of prompts and of metadata."""
    reward_fn = sp_rerank.as_reward_fn(encoder)
    images = IMAGES.half()
    with futures.ThreadPoolExecutor(max_workers=2) as executor:
        rewards, reward_metadata = executor.submit(reward_fn, images, PROMPTS, ({}, {}, {})).result()
    rewards = torch.as_tensor(rewards)
    gathered = torch.cat([rewards, rewards]).cpu().numpy()
    assert [f"{prompt} | {reward:.2f}" for prompt, reward in zip(PROMPTS, rewards, strict=True)]
    assert (gathered.shape, gathered.std() > 0, reward_metadata) == ((6,), True, {})


def test_ddpo_of_trl_calls_it(encoder: DualEncoder):
    """trl 0.23.1, trainer/ddpo_trainer.py, `compute_rewards` with is_async=False, and what `step` does with them."""
    pairs = [(IMAGES, PROMPTS, ({},) * 3, None), (IMAGES.flip(0), PROMPTS, ({},) * 3, None)]
    reward_fn = sp_rerank.as_reward_fn(encoder)
    rewards = []
    for images, prompts, prompt_metadata, _ in pairs:
        reward, reward_metadata = reward_fn(images, prompts, prompt_metadata)
        rewards.append((torch.as_tensor(reward, device="cpu"), reward_metadata))
    values, _ = zip(*rewards, strict=True)
    values = torch.cat(values).cpu().numpy()
    advantages = (values - values.mean()) / (values.std() + 1e-8)
    assert np.isfinite(advantages).all() and advantages.std() == pytest.approx(1, abs=1e-3)


def test_alignprop_of_trl_follows_its_gradient(encoder: DualEncoder):
    """trl 0.23.1, trainer/alignprop_trainer.py, `compute_rewards` and `calculate_loss`: a step up raises the reward."""
    reward_fn = sp_rerank.as_reward_fn(encoder, differentiable=True)
    images = IMAGES.clone().requires_grad_()
    rewards, _ = reward_fn(images, PROMPTS, [{}] * 3)
    loss = 10.0 - rewards.mean()
    loss.backward()
    assert images.grad is not None and images.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    with torch.no_grad():
        raised, _ = reward_fn(images - 1e-3 * images.grad.sign(), PROMPTS, [{}] * 3)
    assert (raised > rewards).all()


def test_flow_grpo_calls_it_in_place_of_its_own_sum(encoder: DualEncoder):
    """yifan123/flow_grpo, scripts/train_sd3.py: only_strict; for pictures that are edited: ref_images, PIL images."""
    reward_fn = sp_rerank.as_reward_fn(encoder, by_name=True)
    pictures = [to_pil_image(image) for image in IMAGES]
    with futures.ThreadPoolExecutor(max_workers=8) as executor:
        training = executor.submit(reward_fn, IMAGES, list(PROMPTS), [{}] * 3, only_strict=True)
        testing = executor.submit(reward_fn, pictures, list(PROMPTS), [{}] * 3, ref_images=pictures, only_strict=False)
        rewards, _ = training.result()
        others, _ = testing.result()
    sample = {key: torch.as_tensor(value, device="cpu").float() for key, value in rewards.items()}
    assert torch.equal(sample["avg"], encoder.score(list(PROMPTS), IMAGES))
    assert others.keys() == rewards.keys() == {encoder.name, "avg"}
    torch.testing.assert_close(others["avg"], rewards["avg"], atol=0.01, rtol=0)


def test_flow_grpo_weighs_it_among_others(encoder: DualEncoder):
    """yifan123/flow_grpo, flow_grpo/rewards.py, `multi_score`: builders without a device, sums of lists."""
    score_functions = {"ours": lambda: sp_rerank.as_reward_fn(encoder), "light": lambda: light}
    light = sp_rerank.as_reward_fn(BrightnessScorer())
    totals: list[torch.Tensor] = []
    for name, weight in {"ours": 0.5, "light": 2.0}.items():
        assert "device" not in score_functions[name].__code__.co_varnames
        scores, _ = score_functions[name]()(IMAGES, PROMPTS, None)
        weighted = [weight * score for score in scores]
        totals = [total + more for total, more in zip(totals, weighted, strict=True)] if totals else weighted
    expected = 0.5 * encoder.score(list(PROMPTS), IMAGES) + 2 * BrightnessScorer().score("", IMAGES)
    torch.testing.assert_close(torch.as_tensor(totals), expected)


@pytest.mark.parametrize("conversation", [False, True])
def test_grpo_of_trl_calls_it_for_texts_of_images(encoder: DualEncoder, conversation: bool):
    """trl 1.16.0, trainer/grpo_trainer.py, `_calculate_rewards`: keywords only, columns of the data, a list back."""
    pictures = [to_pil_image(image) for image in IMAGES]
    completions = [[{"role": "assistant", "content": text}] if conversation else text for text in PROMPTS]
    reward_func = as_caption_reward_fn(encoder, column="images")
    output_reward_func = reward_func(
        prompts=["Describe it."] * 3,
        completions=completions,
        completion_ids=[[1], [2], [3]],
        images=[[picture] for picture in pictures],
        trainer_state=None,
        log_extra=print,
        log_metric=print,
    )
    output_reward_func = [reward if reward is not None else torch.nan for reward in output_reward_func]
    rewards_per_func = torch.tensor(output_reward_func, dtype=torch.float32)
    assert torch.equal(rewards_per_func, encoder.score(list(PROMPTS), pictures))


def test_a_missing_column_is_named(encoder: DualEncoder):
    with pytest.raises(UsageError, match=r"expected a column 'image' .* got prompts, pixels"):
        as_caption_reward_fn(encoder)(completions=["a"], prompts=["b"], pixels=[None])


def test_a_gradient_that_a_scorer_has_not_is_refused():
    with pytest.raises(UsageError, match="brightness has no gradient to the pixels"):
        sp_rerank.as_reward_fn(BrightnessScorer(), differentiable=True)


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
