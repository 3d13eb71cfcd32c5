"""Scorers as rewards, for trainers of diffusion models. Knows nothing of trainers but the calls that they make."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sp_rerank.errors import UsageError
from sp_rerank.scorers.scoring import name_of
from sp_rerank.types import Scorer

Pictures = Tensor | np.ndarray | Sequence[Image.Image]


class RewardFn(Protocol):
    """What `as_reward_fn` returns."""

    def __call__(
        self,
        images: Pictures,
        prompts: Sequence[str],
        metadata: Any = None,
        *,
        ref_images: Any = None,
        only_strict: bool = True,
    ) -> tuple[Any, dict[str, Any]]:
        """(scores, info); see `as_reward_fn`."""
        ...


def as_reward_fn(scorer: Scorer, *, differentiable: bool = False, by_name: bool = False) -> RewardFn:
    """The scorer as a function of images, prompts and metadata, as DDPO and Flow-GRPO trainers call their rewards.

    Who takes it as it is:

    - github.com/kvablack/ddpo-pytorch, scripts/train.py, in place of a function out of `ddpo_pytorch/rewards.py`
    - `DDPOTrainer` of trl 0.23, and with `differentiable` its `AlignPropTrainer`; trl 0.24 removed both, and
      what trl trains since writes text: see `as_caption_reward_fn`
    - github.com/yifan123/flow_grpo, scripts/train_*.py, with `by_name` in place of what `multi_score` returns; without
      it, `lambda: as_reward_fn(scorer)`, among the functions that `multi_score` weighs

    >>> from sp_rerank import load_scorer
    >>> reward = as_reward_fn(load_scorer("brightness"))
    >>> reward(torch.full((2, 3, 8, 8), 0.5), ["a lemon", "two cats"], [{}, {}])
    (tensor([0.5000, 0.5000]), {})

    Args:
        scorer: what gives the reward; where it computes is its own affair.
        differentiable: with a gradient to the images, for trainers that follow it. The scorer's weights get one too
            unless `scorer.requires_grad_(False)` says otherwise.
        by_name: scores as {the scorer's name: scores, "avg": scores}, in the form of a weighted sum of one.

    Returns:
        A function `(images, prompts, metadata, *, ref_images, only_strict) -> (scores, info)`:

        - images: (n, 3, H, W) floats in [0, 1] of any precision on any device, or an (n, H, W, 3) uint8 array, or n PIL
          images; with `differentiable` the first only
        - prompts: n, one an image
        - metadata: of the prompts, in whatever form the trainer keeps it; not looked at
        - ref_images, only_strict: what Flow-GRPO tells its rewards of similarity and GenEval; not looked at
        - scores: (n,) float32 on the CPU, without a gradient; if `differentiable` with one, on the scorer's device;
          NaN for an image that is not finite
        - info: empty

        It raises UsageError for other images, and where there are not n prompts.

    Raises:
        UsageError: if a gradient is asked for, and the scorer has none.
    """
    if differentiable and not _has_gradient(scorer):
        raise UsageError(
            f"scorer {name_of(scorer)} has no gradient to the pixels; expected a network of this package, such as "
            "hps-v2.1, pickscore, image-reward, mps or aesthetic-v2"
        )

    def reward(
        images: Pictures,
        prompts: Sequence[str],
        metadata: Any = None,
        *,
        ref_images: Any = None,
        only_strict: bool = True,
    ) -> tuple[Any, dict[str, Any]]:
        texts = prompts if isinstance(prompts, str) else list(prompts)
        network: Any = scorer
        scores = (
            network(texts, images, differentiable=True) if differentiable else scorer.score(texts, _as_scored(images))
        )
        return ({name_of(scorer): scores, "avg": scores} if by_name else scores), {}

    return reward


def as_caption_reward_fn(scorer: Scorer, column: str = "image") -> Callable[..., list[float]]:
    """The scorer as a reward for a model that writes texts of images, as `GRPOTrainer` of trl 1.16 calls its rewards.

    >>> from PIL import Image
    >>> from sp_rerank import load_scorer
    >>> reward = as_caption_reward_fn(load_scorer("brightness"))
    >>> white = Image.new("RGB", (8, 8), "white")
    >>> reward(prompts=["What is it?"], completions=["A sheet of paper."], image=[white], trainer_state=None)
    [1.0]

    Args:
        scorer: how well does the image fit the text; cycle-reward is trained for it.
        column: of the data, which holds an image, or a list of one, for each text.

    Returns:
        A function of keyword arguments, `completions` and the column; the others are not looked at. A completion is a
        text or, of a conversation, a list of messages of which the last counts. It returns a number for each.
    """

    def caption_reward(*, completions: Sequence[Any], **columns: Any) -> list[float]:
        if column not in columns:
            raise UsageError(
                f"expected a column {column!r} with the images in the data, got {', '.join(columns) or 'none'}"
            )
        images = [value[0] if isinstance(value, list) else value for value in columns[column]]
        return scorer.score([_text_of(completion) for completion in completions], images).tolist()

    return caption_reward


def _text_of(completion: Any) -> str:
    """The text of a completion; of a message's parts those that are text."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


def _has_gradient(scorer: Scorer) -> bool:
    forward = getattr(scorer, "forward", None)
    return forward is not None and "differentiable" in inspect.signature(forward).parameters


def _as_scored(images: Pictures) -> Tensor | Sequence[Image.Image]:
    if isinstance(images, Tensor):
        if images.ndim == 4 and images.shape[1] == 3 and images.is_floating_point():
            return images
    elif isinstance(images, np.ndarray):
        if images.ndim == 4 and images.shape[3] == 3 and images.dtype == np.uint8:
            return torch.tensor(images).permute(0, 3, 1, 2).float().div(255)
    elif isinstance(images, Sequence) and all(isinstance(image, Image.Image) for image in images):
        return images
    shape = getattr(images, "shape", None)
    got = f"a {type(images).__name__}" if shape is None else f"{tuple(shape)} of {getattr(images, 'dtype', None)}"
    raise UsageError(
        f"images: expected an (n, 3, H, W) tensor of floats, an (n, H, W, 3) array of uint8 or PIL images, got {got}"
    )
