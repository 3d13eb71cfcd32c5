"""The losses of Stable Preference, each with its equation, its source and its open points as arguments.

Source: the slide deck of Li, Niu, Zhao, "Stable Preference", ECCV 2024, DOI 10.1007/978-3-031-73390-1_15, the only
public statement of the formulas. What it leaves open is marked as our reading. A pair is two images of one prompt; its
gap is S_first - S_second, its label 1 where the first is better, 0 where the second is, .5 where they tie.

Knows tensors. Knows nothing of encoders, images or processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sp_rerank.errors import UsageError

DISTANCES = ("embedding-cosine", "embedding-l2", "score-cosine", "score-logit")
"""Between what, and measured how; of two scores the only distance is |S - S'|, on the one scale or the other."""

GAP_SCALES = ("logit", "cosine", "normalized")


@dataclass(frozen=True, slots=True)
class Views:
    """The embeddings of p pairs: of norm 1, (p, d) each.

    Attributes:
        first: The first images.
        second: The second images.
        text: The prompts.
    """

    first: Tensor
    second: Tensor
    text: Tensor

    def scores(self, scale: Tensor | float) -> tuple[Tensor, Tensor]:
        """(p,) S of the first and of the second images, S = scale * cos; the scale of 1 gives cosines."""
        return scale * (self.first * self.text).sum(-1), scale * (self.second * self.text).sum(-1)

    def gap(self, scale: Tensor | float) -> Tensor:
        """(p,) S_first - S_second."""
        first, second = self.scores(scale)
        return first - second


def preference_loss(gap: Tensor, label: Tensor) -> Tensor:
    """L_pref = -sum_i y_i log y^_i with y^_i = exp S_i / sum_j exp S_j: cross-entropy over the two images of a pair.

    The deck drops the minus. With two images y^_first = sigmoid(gap). A tie has y = (.5, .5) (our reading: the deck's
    pairs have no ties).

    Args:
        gap: (p,) S_first - S_second, S = logit_scale * cosine.
        label: (p,) in [0, 1].

    Returns:
        (p,) at least the entropy of the label.
    """
    # softplus(gap) - label * gap, without the cancellation of two large numbers
    return label * F.softplus(-gap) + (1 - label) * F.softplus(gap)


def anti_interference_loss(intra: Tensor, inter: Tensor) -> Tensor:
    """L_ai = -log(exp(inter) / (exp(inter) + exp(intra))) = softplus(intra - inter).

    Args:
        intra: (p,) distance between an image and its perturbed copy, the mean of the pair's two.
        inter: (p,) distance between the two images of the pair.

    Returns:
        (p,) above 0; with distances of at most 2 never below softplus(-2) = .127.
    """
    return F.softplus(intra - inter)


def distances(views: Views, copies: Views, kind: str, scale: Tensor) -> tuple[Tensor, Tensor]:
    """intra and inter of `anti_interference_loss`. The deck does not say which distance: our default is the first.

    - "embedding-cosine": 1 - cos of the image embeddings, in [0, 2]
    - "embedding-l2": the norm of their difference, in [0, 2]
    - "score-cosine": the difference of the cosines with the prompt, in [0, 2]
    - "score-logit": that of the scores S = scale * cos, unbounded

    Args:
        views: Views of the pairs.
        copies: Views of their perturbed copies.
        kind: A name out of DISTANCES.
        scale: () the logit scale; it gets a gradient from "score-logit" only.

    Returns:
        (p,) and (p,).

    Raises:
        UsageError: if the kind is another.
    """
    if kind == "embedding-cosine":
        return _mean_and_inter(views, copies, lambda a, b: 1 - (a * b).sum(-1))
    if kind == "embedding-l2":
        return _mean_and_inter(views, copies, lambda a, b: torch.linalg.vector_norm(a - b, dim=-1))
    if kind not in DISTANCES:
        raise UsageError(f"expected a distance out of {', '.join(DISTANCES)}, got {kind!r}")
    factor = scale if kind == "score-logit" else 1.0
    first, second = views.scores(factor)
    copied_first, copied_second = copies.scores(factor)
    return ((first - copied_first).abs() + (second - copied_second).abs()) / 2, (first - second).abs()


def _mean_and_inter(views: Views, copies: Views, distance) -> tuple[Tensor, Tensor]:
    intra = (distance(views.first, copies.first) + distance(views.second, copies.second)) / 2
    return intra, distance(views.first, views.second)


def better_minus_worse(gap: Tensor, label: Tensor) -> Tensor:
    """dS = S_better - S_worse, (p,): positive where the order is right; 0 for a tie (our reading)."""
    return torch.sign(2 * label - 1) * gap


def scaled_gaps(gap: Tensor, global_gap: Tensor, scale: Tensor, how: str) -> tuple[Tensor, Tensor]:
    """The gaps as the gate and the weights shall see them: an open point, for the deck does not define S there.

    - "logit": as they are, S = logit_scale * cos
    - "cosine": divided by the logit scale
    - "normalized": divided by the standard deviation of the global batch's gaps, about 0, which is their mean over
      both orders of a pair

    Args:
        gap: (p,) logits.
        global_gap: (q,) those of the global batch, `gap` among them.
        scale: () the logit scale.
        how: A name out of GAP_SCALES.

    Returns:
        (p,) and (q,), without a gradient.

    Raises:
        UsageError: if `how` is another.
    """
    if how not in GAP_SCALES:
        raise UsageError(f"expected a scale of the gaps out of {', '.join(GAP_SCALES)}, got {how!r}")
    gap, global_gap, scale = gap.detach(), global_gap.detach(), scale.detach()
    divisor = torch.ones_like(scale)
    if how == "cosine":
        divisor = scale
    elif how == "normalized":
        divisor = global_gap.square().mean().sqrt().clamp(min=torch.finfo(gap.dtype).tiny)
    return gap / divisor, global_gap / divisor


def gate(gap: Tensor, b: float, tau: float) -> Tensor:
    """Stage 1, "correct the preference order": the factor 1 / (1 + exp((dS - b) / tau)) of L_pref + L_ai.

    Detached (our reading): otherwise a step could lower the loss by closing the gate rather than by learning.

    Args:
        gap: (p,) dS on the scale chosen.
        b: where the gate is half open; the deck's example has .1.
        tau: how gradually it closes; the deck's example has .05.

    Returns:
        (p,) in (0, 1), without a gradient.
    """
    return torch.sigmoid((b - gap.detach()) / tau)


def softmax_weights(gap: Tensor, global_gap: Tensor, temperature: float) -> Tensor:
    """Stage 2, "broaden the margin": exp(dS_j) / sum_i exp(dS_i), the factor of a pair's L_pref + L_ai.

    Detached (our reading): otherwise a step could lower the loss by shrinking the dS of a heavy pair. i runs over all
    pairs of the global batch (our reading), so that the loss is a weighted sum.

    Args:
        gap: (p,) dS on the scale chosen.
        global_gap: (q,) that of the global batch, `gap` among them.
        temperature: divides dS; the deck has 1.

    Returns:
        (p,) without a gradient; over the global batch they sum to 1.
    """
    return torch.exp(gap.detach() / temperature - torch.logsumexp(global_gap.detach() / temperature, dim=0))


def effective_sample_size(weights: Tensor) -> Tensor:
    """Kish's (sum w)^2 / sum w^2, (): how many pairs carry the batch; 1 / sum w^2 where the weights sum to 1."""
    largest = weights.max().clamp(min=torch.finfo(weights.dtype).tiny)  # squares of small weights underflow
    relative = weights / largest
    return relative.sum().square() / relative.square().sum().clamp(min=torch.finfo(weights.dtype).tiny)
