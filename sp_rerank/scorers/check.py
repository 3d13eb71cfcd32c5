"""The contract of a scorer, as something that can be run: for authors of plug-ins and for our own tests.

Knows nothing of particular scorers; looks at names and scores only. Meant for float32: in half precision a batch of one
and a batch of five differ by more than the tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from PIL import Image
from torch import Tensor

from sp_rerank.errors import UsageError
from sp_rerank.types import Scorer

_TOLERANCE = 1e-4
_PROMPTS = ("a lemon wearing sunglasses on the beach", "a teddy bear", "", "two cats and a dog", "a red skateboard")


def check_scorer(scorer: Scorer) -> None:
    """Score five small random images in several ways, and compare.

    The rules, in the order in which they are tried:

    - name: a text that is not empty
    - inputs: a text or n texts as the prompt, a tensor or PIL images
    - untouched: the images are afterwards what they were
    - shape: (n,), as a torch tensor
    - dtype: float32
    - device: the CPU
    - gradient: none, even where gradients are enabled
    - finite: no NaN, no infinity, for images that have none
    - deterministic: the same call twice gives the same bits
    - prompts: n times the same prompt gives what the prompt alone gives
    - formats: PIL images give what the same images as a tensor give
    - order: images and prompts in another order give the same scores in that order
    - batch size: each image on its own gives what it gives among others

    The last four within 1e-4, absolute or relative.

    Raises:
        UsageError: naming the first rule that is broken, with what was expected and what came.
    """
    if not isinstance(getattr(scorer, "name", None), str) or not scorer.name:
        _refuse(scorer, "name", f"expected a text that is not empty, got {getattr(scorer, 'name', None)!r}")
    images = _images()
    _check_form(scorer, images)
    _check_consistency(scorer, images)


def _check_form(scorer: Scorer, images: Tensor) -> None:
    with torch.enable_grad():
        scores: Any = _score(scorer, _PROMPTS[0], images)
    count = len(images)
    if not isinstance(scores, Tensor) or scores.shape != (count,):
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        _refuse(scorer, "shape", f"expected a tensor of shape ({count},), got {got}")
    if scores.dtype != torch.float32:
        _refuse(scorer, "dtype", f"expected float32, got {scores.dtype}")
    if scores.device.type != "cpu":
        _refuse(scorer, "device", f"expected the scores on the CPU, got them on {scores.device}")
    if scores.requires_grad:
        _refuse(scorer, "gradient", "expected scores without a gradient, got requires_grad=True")
    if not scores.isfinite().all():
        _refuse(scorer, "finite", f"expected finite scores of finite images, got {scores.tolist()}")


def _check_consistency(scorer: Scorer, images: Tensor) -> None:
    prompt, prompts = _PROMPTS[0], list(_PROMPTS)
    one_prompt, many_prompts = _score(scorer, prompt, images), _score(scorer, prompts, images)
    if not torch.equal(one_prompt, _score(scorer, prompt, images)):
        _refuse(scorer, "deterministic", "expected the same scores from the same call made again, got others")
    pictures = [Image.fromarray(image.mul(255).byte().permute(1, 2, 0).numpy()) for image in images]
    backwards = _score(scorer, prompts[::-1], images.flip(0))
    alone = [_score(scorer, prompts[i], images[i : i + 1]) for i in range(len(images))]
    for rule, expected, got in (
        ("prompts", one_prompt, _score(scorer, [prompt] * len(images), images)),
        ("formats", one_prompt, _score(scorer, prompt, pictures)),
        ("order", many_prompts, backwards.flip(0)),
        ("batch size", many_prompts, torch.cat(alone)),
    ):
        if not torch.allclose(got, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
            _refuse(scorer, rule, f"expected {expected.tolist()} within {_TOLERANCE}, got {got.tolist()}")


def _score(scorer: Scorer, prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image]) -> Tensor:
    before: Any = images.clone() if isinstance(images, Tensor) else [image.copy() for image in images]
    try:
        scores = scorer.score(prompt, images)
    except Exception as error:
        prompts = "a text" if isinstance(prompt, str) else "a list of texts"
        kind = "a tensor" if isinstance(images, Tensor) else "PIL images"
        message = f"expected scores of {kind} for {prompts}, got {type(error).__name__}: {error}"
        raise UsageError(_broken(scorer, "inputs", message)) from error
    same = torch.equal(images, before) if isinstance(images, Tensor) else list(images) == before
    if not same:
        _refuse(scorer, "untouched", "expected the images as they were before, got them changed")
    return scores


def _images() -> Tensor:
    """(5, 3, 40, 48) float32 in [0, 1], multiples of 1/255 so that they pass through PIL unharmed."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(5, 3, 5, 6, generator=generator)
    return coarse.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3).mul(255).round().div(255)


def _refuse(scorer: Scorer, rule: str, message: str) -> NoReturn:
    raise UsageError(_broken(scorer, rule, message))


def _broken(scorer: Scorer, rule: str, message: str) -> str:
    return f"scorer {getattr(scorer, 'name', None) or type(scorer).__name__!r} breaks the rule '{rule}': {message}"
