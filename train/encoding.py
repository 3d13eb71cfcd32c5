"""Embeddings of a batch and the way back of their gradient, in parts where memory is short.

Knows encoders. Knows nothing of losses, optimizers or files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.train.data import PairBatch

_IMAGE_TOWER, _SCALE = "visual.", "logit_scale"


class EmbeddingCache:
    """Embeddings that cannot change, each made once: of texts where no part of the text tower learns, of images where
    no part of the image tower does and they are not perturbed.

    Each is made by itself: in a batch it would round otherwise than in another one, and a resumed run would not come to
    the bits of one that never stopped. Kept on the CPU, 4 d bytes each.

    Args:
        scorer: its frozen parameters marked.
        augment: whether the images are perturbed.
    """

    def __init__(self, scorer: DualEncoder, *, augment: bool):
        def learns(image: bool) -> bool:
            named = scorer.clip.named_parameters()
            return any(
                p.requires_grad for name, p in named if name.startswith(_IMAGE_TOWER) == image and name != _SCALE
            )

        dropped = scorer.config["vision_cfg"].get("patch_dropout", 0) > 0
        self._images = None if augment or dropped or learns(image=True) else dict[str, Tensor]()
        self._texts = None if learns(image=False) else dict[bytes, Tensor]()

    def images(self, batch: PairBatch, encode: Callable[[Tensor], Tensor]) -> Tensor | None:
        """(n, d) of a batch's images as they are, or None if they may change."""
        if self._images is None or not batch.names:
            return None
        return _remembered(self._images, batch.names, batch.pixels, encode)

    def texts(self, batch: PairBatch, encode: Callable[[Tensor], Tensor]) -> Tensor | None:
        """(m, d) of a batch's prompts, or None if they may change."""
        if self._texts is None or not len(batch.tokens):
            return None
        keys = [row.numpy().tobytes() for row in batch.tokens.cpu()]
        return _remembered(self._texts, keys, batch.tokens, encode)


def _remembered(
    known: dict[Any, Tensor], keys: Sequence[Any], rows: Tensor, encode: Callable[[Tensor], Tensor]
) -> Tensor:
    """The embeddings of the first rows, by key; what is not known is made now, each by itself."""
    for place, key in enumerate(keys):
        if key not in known:
            with torch.no_grad():
                known[key] = encode(rows[place : place + 1]).cpu()
    return torch.cat([known[key] for key in keys]).to(rows.device)


class EncodedBatch:
    """The embeddings of a batch, and the way back of a gradient from them to the weights.

    With `micro_batch_size` 0 one pass keeps its graph. Otherwise a first pass without a graph gives the embeddings, and
    a second one, part by part, takes their gradient to the weights: the loss sees the whole batch, the memory holds
    one part. Source: Gao et al. 2021, arXiv 2101.06983 (GradCache).

    Args:
        scorer: its encoders, in training or evaluation mode as it is.
        batch: on the scorer's device.
        micro_batch_size: images or texts a part; 0 is all.
        seed: of the dropout of this batch; each part has its own, the same in both passes.
        autocast: gives the context in which the encoders compute.
        frozen: embeddings that cannot change; None encodes everything.

    Attributes:
        images: (v n, d) float32 of norm 1, a leaf whose gradient can be asked for.
        texts: (m, d) float32 of norm 1, such a leaf too.
    """

    def __init__(
        self,
        scorer: DualEncoder,
        batch: PairBatch,
        *,
        micro_batch_size: int,
        seed: int,
        autocast: Callable[[], AbstractContextManager[Any]],
        frozen: EmbeddingCache | None = None,
    ):
        self._scorer, self._seed, self._autocast = scorer, seed, autocast
        images = frozen.images(batch, self._encode_images) if frozen else None
        texts = frozen.texts(batch, self._encode_texts) if frozen else None
        first = 0 if images is None else len(images)  # copies come behind
        self._parts = [(batch.pixels, part) for part in _parts(first, len(batch.pixels), micro_batch_size)]
        self._first_text = len(self._parts)
        if texts is None:
            self._parts += [(batch.tokens, part) for part in _parts(0, len(batch.tokens), micro_batch_size)]
        self._kept: list[Tensor] | None = None
        with torch.set_grad_enabled(not micro_batch_size):
            made = [self._encode(index) for index in range(len(self._parts))]
        if not micro_batch_size:
            self._kept = made
        empty = torch.empty(0, scorer.config["embed_dim"], device=batch.pixels.device)
        detached = [part.detach() for part in made]
        fixed = [empty if side is None else side for side in (images, texts)]
        self.images = torch.cat([fixed[0], *detached[: self._first_text]]).requires_grad_()
        self.texts = torch.cat([fixed[1], *detached[self._first_text :]]).requires_grad_()

    def backward(self, images: Tensor, texts: Tensor) -> None:
        """Add to the gradients of the weights.

        Args:
            images: gradient of the loss to `images`.
            texts: gradient of the loss to `texts`.
        """
        gradients: dict[int, Tensor] = {}
        for index, (_, part) in enumerate(self._parts):
            gradients[index] = (images if index < self._first_text else texts)[part]
        for index, gradient in gradients.items():
            made = self._kept[index] if self._kept is not None else self._encode(index)
            if made.requires_grad:  # not that of a frozen tower
                made.backward(gradient)

    def _encode(self, index: int) -> Tensor:
        values, part = self._parts[index]
        torch.manual_seed(self._seed + index)
        return (self._encode_images if index < self._first_text else self._encode_texts)(values[part])

    def _encode_images(self, pixels: Tensor) -> Tensor:
        with self._autocast():
            return F.normalize(self._scorer.clip.encode_image(pixels).float(), dim=-1)

    def _encode_texts(self, tokens: Tensor) -> Tensor:
        with self._autocast():
            return F.normalize(self._scorer.clip.encode_text(tokens).float(), dim=-1)


def _parts(first: int, end: int, size: int) -> list[slice]:
    return [slice(start, min(start + (size or end), end)) for start in range(first, end, size or max(end, 1))]
