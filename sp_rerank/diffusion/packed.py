"""Images of several prompts in shared calls of the pipeline: with few candidates a prompt, one prompt fills no batch.

Knows samplers and configurations. Knows nothing of scores or of what becomes of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from sp_rerank.config import RunConfig
from sp_rerank.diffusion.batches import Batch
from sp_rerank.diffusion.sampler import Sampler, sampler_options
from sp_rerank.errors import UsageError

if TYPE_CHECKING:
    from sp_rerank.diffusion.memory_limit import MemoryLimit


class PackedSampler(Sampler):
    """A `Sampler` whose images have prompts of their own.

    Args:
        pipe: As in `Sampler`.
        prompts: The prompt of each image by its index.
        **options: As in `Sampler`, the same for all images.
    """

    def __init__(self, pipe: Any, prompts: Mapping[int, str], **options: Any) -> None:
        super().__init__(pipe, next(iter(prompts.values())), **options)
        self._prompts = prompts
        self._texts: dict[str, dict[str, Any]] = {}
        self._in_hand: list[str] = []
        """The prompts of the call that is made now."""

    def _make(self, indices: list[int], seeds: list[int]) -> Batch:
        self._in_hand = [self._prompts[index] for index in indices]
        return super()._make(indices, seeds)

    def _text_arguments(self, images: int) -> dict[str, Any]:
        """A text for each image in hand.

        Raises:
            UsageError: If the pipeline encodes the prompts to different lengths.
        """
        with torch.no_grad():
            for prompt in self._in_hand:
                if prompt not in self._texts:
                    self._texts[prompt] = self._encode_text(prompt)
        return {**self._stacked([self._texts[prompt] for prompt in self._in_hand]), "num_images_per_prompt": 1}

    def _stacked(self, texts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The text arguments of one call: embeddings (b, ...) of (1, ...) each, or lists of strings."""
        stacked: dict[str, Any] = {}
        for name, first in texts[0].items():
            values = [text[name] for text in texts]
            if not isinstance(first, torch.Tensor):
                stacked[name] = values
            elif len({value.shape for value in values}) > 1:
                raise UsageError(f"{type(self.pipe).__name__} encodes prompts to different lengths; do not pack them")
            else:
                stacked[name] = torch.cat(values)
        return stacked


def make_together(
    configs: Sequence[RunConfig],
    pipe: Any,
    *,
    memory_limit: MemoryLimit | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[list[Batch]]:
    """Make all candidates of several runs in calls that they share.

    Args:
        configs: Runs that differ in prompt, seed and number of candidates alone. Their candidates, one run's after
            another's, are cut into batches of the first one's size.
        pipe: Makes the images.
        memory_limit: What earlier runs of the pipeline found to fit into memory.
        progress: Called after each call.

    Returns:
        For each run its candidates of each call.

    Raises:
        TryAgainError, UsageError: As `Sampler.batches`.
    """
    slots = [(place, index) for place, config in enumerate(configs) for index in range(config.n)]
    prompts = {number: configs[place].prompt for number, (place, _) in enumerate(slots)}
    seeds = {number: configs[place].seed + index for number, (place, index) in enumerate(slots)}
    sampler = PackedSampler(pipe, prompts, **sampler_options(configs[0], memory_limit=memory_limit))
    found: list[list[Batch]] = [[] for _ in configs]
    for batch in sampler.batches(seeds):
        for place in sorted({slots[number][0] for number in batch.indices}):
            found[place].append(_part(batch, slots, place))
        progress()
    return found


def _part(batch: Batch, slots: Sequence[tuple[int, int]], place: int) -> Batch:
    """The images of one run out of a call."""
    chosen = [at for at, number in enumerate(batch.indices) if slots[number][0] == place]
    return replace(
        batch,
        indices=tuple(slots[batch.indices[at]][1] for at in chosen),
        seeds=tuple(batch.seeds[at] for at in chosen),
        images=batch.images[chosen],
        flagged=tuple(batch.flagged[at] for at in chosen),
        of_call=len(batch.indices),
    )
