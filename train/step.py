"""One training step: a batch encoded, the losses of all its pairs weighed, the weights moved. Knows no files."""

from __future__ import annotations

import logging
import math
import time
from contextlib import AbstractContextManager, nullcontext
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from sp_rerank.errors import NothingUsableError
from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.train import losses
from sp_rerank.train.data import PairBatch
from sp_rerank.train.distributed import current, device, gathered, summed
from sp_rerank.train.encoding import EmbeddingCache, EncodedBatch
from sp_rerank.train.metrics import StepMetrics
from sp_rerank.train.model import build_optimizer
from sp_rerank.train.recipe import Recipe

log = logging.getLogger(__name__)

MOST_FAILURES = 3
"""Steps in a row whose loss or gradient is not finite that are left out; one more stops the run."""

_MOST_LOGIT_SCALE = math.log(100)  # as CLIP clamps it


class TrainStep:
    """Moves the weights of a scorer, a batch at a time.

    Attributes:
        learning: The parameters that learn, by name.
        optimizer: over them.
        failures: steps in a row that were left out.

    Args:
        recipe: how.
        scorer: Scorer on its device, in training mode, its frozen parameters marked.
    """

    def __init__(self, recipe: Recipe, scorer: DualEncoder):
        self._recipe, self._scorer, self._state = recipe, scorer, current()
        self.learning = {name: p for name, p in scorer.named_parameters() if p.requires_grad}
        self.optimizer = build_optimizer(scorer, recipe)
        self._frozen = EmbeddingCache(scorer, augment=recipe.augment)
        self.failures = 0

    def __call__(self, step: int, batch: PairBatch) -> StepMetrics:
        """Take a step counted from 0 with this process's part of its batch.

        Raises:
            NothingUsableError: if it is the fourth in a row whose loss or gradient is not finite.
        """
        began = time.monotonic()
        recipe, clip = self._recipe, self._scorer.clip
        seed = int.from_bytes(sha256(f"{recipe.seed}-{step}-{self._state.process_index}".encode()).digest()[:6])
        encoding = EncodedBatch(
            self._scorer,
            batch,
            micro_batch_size=recipe.micro_batch_size,
            seed=seed,
            autocast=self.autocast,
            frozen=self._frozen,
        )
        scale = clip.logit_scale.exp()
        gap, preference, interference = self._terms(batch, encoding, scale)
        rows = torch.stack([gap, batch.label, preference, interference], dim=1)
        global_batch = gathered(rows, slots=-(-recipe.batch_size // self._state.num_processes))
        own, weights = self._weights(recipe.stage(step), rows.detach(), global_batch, scale)
        norms = self._backward(((own * preference).sum(), recipe.ai_weight * (own * interference).sum()), encoding)
        gradient = self._summed_gradient()
        loss = (weights * (global_batch[:, 2] + recipe.ai_weight * global_batch[:, 3])).sum()
        finite = bool(torch.isfinite(loss) and torch.isfinite(gradient))
        if finite and len(global_batch):
            self._update(recipe.learning_rate_at(step))
        self.optimizer.zero_grad(set_to_none=True)
        self._count_failures(step, finite, batch)
        return StepMetrics.of(
            step=step + 1,
            stage=recipe.stage(step),
            global_batch=global_batch,
            weights=weights,
            loss=loss,
            norms=norms,
            gradient=gradient,
            learning_rate=recipe.learning_rate_at(step),
            logit_scale=clip.logit_scale,
            seconds=time.monotonic() - began,
            left_out=not finite,
        )

    def autocast(self) -> AbstractContextManager[Any]:
        """In which the encoders compute: bfloat16 if the recipe says so; the weights stay float32."""
        half = self._recipe.precision == "bfloat16"
        return torch.autocast(device().type, torch.bfloat16) if half else nullcontext()

    def _terms(self, batch: PairBatch, encoding: EncodedBatch, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(p,) gap, L_pref and L_ai of this process's pairs."""
        views, copies = batch.views(encoding.images, encoding.texts)
        gap = views.gap(scale)
        preference = losses.preference_loss(gap, batch.label)
        if copies is None:
            return gap, preference, torch.zeros_like(gap)
        intra, inter = losses.distances(views, copies, self._recipe.ai_distance, scale)
        return gap, preference, losses.anti_interference_loss(intra, inter)

    def _weights(self, stage: int, rows: Tensor, global_batch: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The factor of each of this process's pairs in the loss, and of each pair of the global batch."""
        recipe, count = self._recipe, max(len(global_batch), 1)
        if stage == 0:
            return torch.full_like(rows[:, 0], 1 / count), torch.full_like(global_batch[:, 0], 1 / count)
        own, others = losses.scaled_gaps(rows[:, 0], global_batch[:, 0], scale, recipe.gap_scale)
        own, others = losses.better_minus_worse(own, rows[:, 1]), losses.better_minus_worse(others, global_batch[:, 1])
        if stage == 1:
            gates = losses.gate(others, recipe.gate_b, recipe.gate_tau)
            return losses.gate(own, recipe.gate_b, recipe.gate_tau) / count, gates / count
        weights = losses.softmax_weights(others, others, recipe.temperature)
        return losses.softmax_weights(own, others, recipe.temperature), weights

    def _backward(self, terms: tuple[Tensor, Tensor], encoding: EncodedBatch) -> Tensor:
        """Take the loss to the weights; the norms of each term's gradient to the embeddings, (2,)."""
        leaves = [encoding.images, encoding.texts, self._scorer.clip.logit_scale]
        gradients = [
            torch.autograd.grad(term, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
            if term.requires_grad  # L_ai does not, where there are no copies
            else [torch.zeros_like(leaf) for leaf in leaves]
            for term in terms
        ]
        images, texts, scale = (part + other for part, other in zip(*gradients, strict=True))
        encoding.backward(images, texts)
        self._scorer.clip.logit_scale.grad = scale
        return summed(torch.stack([i.square().sum() + t.square().sum() for i, t, _ in gradients])).sqrt()

    def _summed_gradient(self) -> Tensor:
        """The norm of the gradient, after adding up that of all processes."""
        if self._state.num_processes > 1:
            for parameter in self.learning.values():
                parameter.grad = summed(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        return nn.utils.get_total_norm([p.grad for p in self.learning.values() if p.grad is not None])

    def _update(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        with torch.no_grad():
            self._scorer.clip.logit_scale.clamp_(0, _MOST_LOGIT_SCALE)

    def _count_failures(self, step: int, finite: bool, batch: PairBatch) -> None:
        self.failures = 0 if finite else self.failures + 1
        if finite:
            return
        images = ", ".join(batch.names[:4]) + (f" and {len(batch.names) - 4} others" if len(batch.names) > 4 else "")
        what = f"step {step + 1}: the loss or its gradient is not finite; its images: {images}"
        if self.failures > MOST_FAILURES:
            raise NothingUsableError(
                f"{what}; so were the {MOST_FAILURES} steps before it. Look at these images, lower learning_rate or "
                "take precision = 'float32', and begin anew"
            )
        log.warning("%s; the step is left out", what)
