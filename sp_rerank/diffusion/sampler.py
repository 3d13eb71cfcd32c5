"""Sampler: one diffusers text-to-image pipeline, driven in seeded batches.

Knows steps, seeds, batches and memory; knows nothing of scores. Batches are fixed by what is asked for, because a batch
is what a machine repeats bit for bit: the same request is always cut the same way, so a resumed run makes the same
pixels.
"""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sp_rerank.errors import TryAgainError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

# what encode_prompt of Stable Diffusion 1/2, and of SDXL, returns
EMBEDDINGS = {
    2: ("prompt_embeds", "negative_prompt_embeds"),
    4: ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
}


@dataclass(frozen=True, slots=True)
class Batch:
    """Images that were made together.

    Attributes:
        indices: of the candidates.
        seeds: of their noise.
        images: (b, 3, H, W) float in [0, 1] on the pipeline's device; not finite where the model broke down.
        flagged: which of them the safety checker replaced.
        nfe: denoiser calls that each of them took; the two halves of guidance count as one.
    """

    indices: tuple[int, ...]
    seeds: tuple[int, ...]
    images: Tensor
    flagged: tuple[bool, ...]
    nfe: int


class Sampler:
    """Makes images of one prompt from seeds.

    Args:
        pipe: any diffusers text-to-image pipeline that takes `generator` as a list and `output_type="pt"`.
        prompt: of all images.
        batch_size: the most images made at once; halved when memory runs out.
        guidance_scale: handed to the pipeline; above 1 the negative prompt is encoded too.
        negative_prompt: what the images should not show.
        call: what makes the images; a subclass of a pipeline hands its parent's `__call__`.
        **arguments: handed to the pipeline unchanged (num_inference_steps, height, width, callback_on_step_end, ...).

    Example:
        >>> sampler = Sampler(pipe, "a lemon", batch_size=8, guidance_scale=7.5)
        >>> for batch in sampler.batches({0: 1000, 1: 1001}):
        ...     print(batch.seeds, batch.images.shape)
        (1000, 1001) torch.Size([2, 3, 512, 512])
    """

    def __init__(
        self,
        pipe: Any,
        prompt: str,
        *,
        batch_size: int,
        guidance_scale: float,
        negative_prompt: str | None = None,
        call: Callable[..., Any] | None = None,
        **arguments: Any,
    ) -> None:
        self.pipe = pipe
        self.batch_size = batch_size
        self.call = call or pipe
        self._limit = batch_size
        self._prompt, self._negative_prompt = prompt, negative_prompt
        self._arguments = {**arguments, "guidance_scale": guidance_scale}
        self._text: dict[str, Any] | None = None
        self._scheduler: Any = None
        """Other than the pipeline's own."""

    def batches(self, seeds: Mapping[int, int], done: Container[int] = ()) -> Iterator[Batch]:
        """Make the images of `seeds` (index -> seed), in the order of their indices, `batch_size` at a time.

        When the accelerator's memory runs out, the batch is halved and made again, and the rest of the run stays at
        the smaller size.

        Args:
            seeds: the whole request, also after an interruption.
            done: indices that are there already; a batch is left out only if all of it is, for the pixels of another
                batch would be others.

        Raises:
            TryAgainError: if memory does not suffice for a single image.
        """
        waiting = deque(block for block in self.blocks(seeds) if not all(index in done for index in block))
        while waiting:
            indices = waiting.popleft()
            if len(indices) > self._limit:
                waiting.extendleft(reversed(_pieces(indices, self._limit)))
                continue
            batch = self._attempt(indices, [seeds[index] for index in indices])
            if batch is None:
                self.shrink(len(indices))
                waiting.appendleft(indices)
            else:
                yield batch

    @property
    def steps(self) -> int:
        """The scheduler steps that the pipeline is asked for."""
        for name in ("timesteps", "sigmas"):
            if self._arguments.get(name) is not None:
                return len(self._arguments[name])
        default = inspect.signature(type(self.pipe).__call__).parameters["num_inference_steps"].default
        return self._arguments.get("num_inference_steps", default)

    @property
    def size(self) -> dict[str, int | None]:
        """Height and width in pixels, as far as they were asked for."""
        return {side: self._arguments.get(side) for side in ("height", "width")}

    @property
    def scheduler(self) -> Any:
        """That of the pipeline, or the one that stands in for it."""
        return self._scheduler or self.pipe.scheduler

    def blocks(self, seeds: Mapping[int, int]) -> list[list[int]]:
        """The indices that share a batch, at the size that is known to fit into memory."""
        return [piece for block in _pieces(sorted(seeds), self.batch_size) for piece in _pieces(block, self._limit)]

    def call_arguments(self, seeds: Sequence[int]) -> dict[str, Any]:
        """What the pipeline is called with for these seeds; the list of generators is of this call alone."""
        if self._text is None:
            with torch.no_grad():
                self._text = self._encode_text()
        return {
            **self._text,
            **self._arguments,
            "num_images_per_prompt": len(seeds),
            # one CPU generator per image: its noise depends neither on the batch nor on the device
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            "output_type": "pt",
            "return_dict": True,
        }

    def with_steps(self, steps: int, scheduler: str | None = None) -> Sampler:
        """A sampler that draws the same noise and spends other steps on it; text and memory limit are shared so far.

        Args:
            steps: of the scheduler.
            scheduler: class name of another scheduler; where the model cannot take it, its own stays.
        """
        self.call_arguments([])  # encodes the text, once for both
        other = copy(self)
        other._arguments = {**self._arguments, "num_inference_steps": steps}
        kinds = {kind.__name__: kind for kind in getattr(self.pipe.scheduler, "compatibles", ())}
        if scheduler in kinds:
            other._scheduler = kinds[scheduler].from_config(self.pipe.scheduler.config)
        return other

    def _attempt(self, indices: list[int], seeds: list[int]) -> Batch | None:
        """One batch, or None when memory ran out: the exception must be gone before the memory can be freed."""
        try:
            return self._make(indices, seeds)
        except torch.OutOfMemoryError:
            return None

    def shrink(self, failed: int) -> None:
        """Make smaller batches from here on, for memory did not suffice for one of `failed`.

        Raises:
            TryAgainError: if that was a single image.
        """
        if failed == 1:
            raise TryAgainError(
                "memory does not suffice for a single image: free some and go on with --resume, or start anew in half "
                "precision (--dtype float16) or with smaller images (--height, --width)"
            )
        self._limit = 1 << ((failed - 1).bit_length() - 1)  # a power of two: a batch is found again by its size
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.warning("out of memory with %d images at once, going on with %d", failed, self._limit)

    @torch.no_grad()
    def _make(self, indices: list[int], seeds: list[int]) -> Batch:
        with counted(self.pipe) as evaluations, _scheduled(self.pipe, self._scheduler):
            output = self.call(**self.call_arguments(seeds))
        flagged = getattr(output, "nsfw_content_detected", None) or [False] * len(seeds)
        return Batch(tuple(indices), tuple(seeds), output.images, tuple(map(bool, flagged)), evaluations[0])

    def _encode_text(self) -> dict[str, Any]:
        """The pipeline's text arguments, encoded once where its family is known, the plain strings otherwise."""
        plain: dict[str, Any] = {"prompt": self._prompt}
        takes = inspect.signature(type(self.pipe).__call__).parameters
        if "negative_prompt" in takes and self._negative_prompt is not None:
            plain["negative_prompt"] = self._negative_prompt
        encode = getattr(self.pipe, "encode_prompt", None)
        # a clip_skip or the scale of a LoRA changes the embeddings, and prompts already encoded need nothing
        changed = self._arguments.get("clip_skip") or self._arguments.get("cross_attention_kwargs")
        if encode is None or changed or "prompt_attention_mask" in takes:
            return plain
        accepted = inspect.signature(encode).parameters
        if "prompt_3" in accepted:  # Stable Diffusion 3 does not repeat embeddings that it is given
            return plain
        if not {"num_images_per_prompt", "do_classifier_free_guidance", "device"} <= set(accepted):
            return plain
        guided = self._arguments["guidance_scale"] > 1
        wanted = {
            **plain,
            **({"prompt_2": None} if "prompt_2" in accepted else {}),
            "device": self.pipe._execution_device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": guided,
        }
        encoded = encode(**wanted)
        names = EMBEDDINGS.get(len(encoded), ())
        if not names or not set(names) <= set(takes):
            return plain
        return {name: value for name, value in zip(names, encoded, strict=True) if value is not None}


def _pieces(indices: list[int], size: int) -> list[list[int]]:
    return [indices[i : i + size] for i in range(0, len(indices), size)]


@contextmanager
def _scheduled(pipe: Any, scheduler: Any) -> Iterator[None]:
    """Lend a pipeline another scheduler; None lets it keep its own."""
    own = pipe.scheduler
    pipe.scheduler = scheduler or own
    try:
        yield
    finally:
        pipe.scheduler = own


@contextmanager
def counted(pipe: Any) -> Iterator[list[int]]:
    """Count the calls of the pipeline's denoiser (`unet` or `transformer`) in the first item of a list."""
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    handle = (getattr(pipe, "unet", None) or pipe.transformer).register_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()
