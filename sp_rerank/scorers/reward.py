"""Scorers as rewards, for trainers of diffusion models. Knows nothing of trainers but the signature that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sp_rerank.errors import UsageError
from sp_rerank.types import Scorer

RewardFn = Callable[[Tensor | np.ndarray, Sequence[str], Any], tuple[Tensor, dict[str, Any]]]


def as_reward_fn(scorer: Scorer) -> RewardFn:
    """The scorer as a function of images, prompts and metadata, as DDPO and Flow-GRPO trainers call their rewards.

    Source of the signature: github.com/kvablack/ddpo-pytorch, `ddpo_pytorch/rewards.py`; `DDPOTrainer` of trl, which
    takes the function as it is; github.com/yifan123/flow_grpo, `flow_grpo/rewards.py`, whose `multi_score` takes
    functions that return one, here `lambda: as_reward_fn(scorer)`. All three run `torch.as_tensor` on the scores;
    Flow-GRPO also weighs and adds them one by one.

    >>> from sp_rerank import load_scorer
    >>> reward = as_reward_fn(load_scorer("brightness"))
    >>> reward(torch.full((2, 3, 8, 8), 0.5), ["a lemon", "two cats"], [{}, {}])
    (tensor([0.5000, 0.5000]), {})

    Args:
        scorer: what gives the reward; where it computes is its own affair.

    Returns:
        A function `(images, prompts, metadata) -> (scores, info)`:

        - images: (n, 3, H, W) floats in [0, 1] of any precision on any device, or an (n, H, W, 3) uint8 array
        - prompts: n, one an image
        - metadata: of the prompts, in whatever form the trainer keeps it; not looked at
        - scores: (n,) float32 on the CPU, without a gradient; NaN for an image that is not finite
        - info: empty

        It raises UsageError for other images, and where there are not n prompts.
    """

    def reward(
        images: Tensor | np.ndarray, prompts: Sequence[str], metadata: Any = None
    ) -> tuple[Tensor, dict[str, Any]]:
        return scorer.score(prompts, _as_floats(images)), {}

    return reward


def _as_floats(images: Tensor | np.ndarray) -> Tensor:
    if isinstance(images, Tensor):
        if images.ndim == 4 and images.shape[1] == 3 and images.is_floating_point():
            return images
    elif isinstance(images, np.ndarray) and images.ndim == 4 and images.shape[3] == 3 and images.dtype == np.uint8:
        return torch.tensor(images).permute(0, 3, 1, 2).float().div(255)
    got = f"{tuple(images.shape)} of {images.dtype}" if hasattr(images, "shape") else f"a {type(images).__name__}"
    raise UsageError(f"images: expected an (n, 3, H, W) tensor of floats or an (n, H, W, 3) array of uint8, got {got}")
