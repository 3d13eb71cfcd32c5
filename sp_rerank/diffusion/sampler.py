"""Sampler: one diffusers text-to-image pipeline, driven in seeded batches.

Knows steps, seeds, batches and memory; knows nothing of scores. Batches are fixed by what is asked for, because a batch
is what a machine repeats bit for bit: the same request is always cut the same way, so a resumed run makes the same
pixels.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import torch

from sp_rerank.config import RunConfig
from sp_rerank.diffusion import twin
from sp_rerank.diffusion.batches import Batch, batch_of
from sp_rerank.diffusion.call_arguments import (
    ONE_AT_A_TIME,
    RAW_TENSORS,
    check_pipeline,
    is_one_of,
    parameters_of,
    pipeline_errors,
    select_arguments,
)
from sp_rerank.diffusion.compiling import is_compiled
from sp_rerank.diffusion.memory_limit import MemoryLimit, pieces
from sp_rerank.diffusion.schedulers import check_steps
from sp_rerank.diffusion.spacing import TIMES, draft_scheduler, first_time, time_steps
from sp_rerank.diffusion.text_arguments import encode_text, repeated
from sp_rerank.errors import OptionError, TryAgainError, is_out_of_memory

if TYPE_CHECKING:
    from sp_rerank.types import TextToImagePipeline

log = logging.getLogger(__name__)

OPTIONS = {
    *("pipe", "prompt", "call", "batch_size", "guidance_scale", "negative_prompt", "num_inference_steps"),
    *("height", "width", "memory_limit", "embeddings"),
}
"""What a run sets by options of its own."""


class Sampler:
    """Makes images of one prompt from seeds.

    Args:
        pipe: Any diffusers text-to-image pipeline that takes `generator` as a list and `output_type="pt"`.
        prompt: The prompt of all images.
        batch_size: The most images made at once; halved when memory runs out.
        guidance_scale: Handed to the pipeline; above 1 the negative prompt is encoded too. None, and 0 for a pipeline
            that has no guidance scale, leaves it to the pipeline.
        negative_prompt: What the images should not show.
        embeddings: What the pipeline takes in place of texts, by its own names (prompt_embeds, ...): a tensor or a list
            of one row each, or one text. Neither prompt is handed to the pipeline then.
        call: What makes the images, the pipeline or one of its methods; a subclass hands its parent's `__call__`.
        memory_limit: What earlier runs of the pipeline found to fit; this one adds to it.
        **arguments: Handed to the pipeline unchanged (num_inference_steps, height, width, true_cfg_scale, ...).

    Raises:
        UsageError: If the pipeline cannot be driven in seeded batches, or does not take one of the arguments.

    Example:
        >>> sampler = Sampler(pipe, "a lemon", batch_size=8, guidance_scale=7.5)
        >>> for batch in sampler.batches({0: 1000, 1: 1001}):
        ...     print(batch.seeds, batch.images.shape)
        (1000, 1001) torch.Size([2, 3, 512, 512])
    """

    def __init__(
        self,
        pipe: TextToImagePipeline,
        prompt: str,
        *,
        batch_size: int,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        embeddings: Mapping[str, Any] | None = None,
        call: Callable[..., Any] | None = None,
        memory_limit: MemoryLimit | None = None,
        **arguments: object,
    ) -> None:
        self.pipe = pipe
        self.batch_size = batch_size
        self.call: Callable[..., Any] = pipe if call is None else call
        self._memory = memory_limit or MemoryLimit()
        self._prompt, self._negative_prompt = prompt, negative_prompt
        check_pipeline(pipe, self.call)
        self._arguments = select_arguments(pipe, self.call, guidance_scale, negative_prompt, arguments)
        self._embeddings = embeddings or {}
        self._text: dict[str, Any] | None = None
        self._scheduler: Any = None
        """Other than the pipeline's own."""
        self.on_step: Callable[[float], None] | None = None
        """Called after each call of the denoiser with what is done of the batch in hand, in images."""
        self._check_steps()

    def batches(self, seeds: Mapping[int, int], done: Container[int] = ()) -> Iterator[Batch]:
        """Make the images of `seeds` (index -> seed), in the order of their indices, `batch_size` at a time.

        When the accelerator's memory runs out, the batch is halved and made again, and the rest of the run stays at
        the smaller size.

        Args:
            seeds: The whole request, also after an interruption.
            done: Indices that are there already; a batch is left out only if all of it is, for the pixels of another
                batch would be others.

        Raises:
            TryAgainError: If memory does not suffice for a single image.
            UsageError: If the pipeline refuses its arguments.
        """
        twin.clear_interrupt(self.pipe)
        waiting = deque(block for block in self.blocks(seeds) if not all(index in done for index in block))
        while waiting:
            indices = waiting.popleft()
            if len(indices) > self._limit:
                waiting.extendleft(reversed(pieces(indices, self._limit)))
                continue
            batch = self._attempt(indices, [seeds[index] for index in indices])
            if batch is None:
                self.shrink(len(indices))
                waiting.appendleft(indices)
            else:
                yield batch

    @property
    def _limit(self) -> int:
        """The most images of a call."""
        fits = 1 if is_one_of(self.pipe, ONE_AT_A_TIME) else self._memory.images
        return min(self.batch_size, fits or self.batch_size)

    @property
    def steps(self) -> int:
        """The scheduler steps that the pipeline is asked for."""
        given = [self._arguments[name] for name in TIMES if self._arguments.get(name) is not None]
        return len(given[0]) if given else self._argument("num_inference_steps")

    def _argument(self, name: str) -> Any:
        """An argument of the pipeline: what was given, else its default."""
        return self._arguments.get(name, parameters_of(self.call)[name].default)

    def _check_steps(self) -> None:
        if all(self._arguments.get(name) is None for name in TIMES):
            check_steps(self.scheduler, self.steps)

    @property
    def size(self) -> dict[str, int | None]:
        """Height and width in pixels, as far as they were asked for."""
        return {side: self._arguments.get(side) for side in ("height", "width")}

    @property
    def scheduler(self) -> Any:
        """That of the pipeline, or the one that stands in for it."""
        return self.pipe.scheduler if self._scheduler is None else self._scheduler

    def blocks(self, seeds: Mapping[int, int]) -> list[list[int]]:
        """The indices that share a batch, at the size that is known to fit into memory."""
        return [piece for block in pieces(sorted(seeds), self.batch_size) for piece in pieces(block, self._limit)]

    def call_arguments(self, seeds: Sequence[int]) -> dict[str, Any]:
        """What the pipeline is called with for these seeds; the list of generators is of this call alone."""
        return {
            **self._text_arguments(len(seeds)),
            **self._arguments,
            # one CPU generator per image: its noise depends neither on the batch nor on the device
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            "output_type": "np" if is_one_of(self.pipe, RAW_TENSORS) else "pt",
            "return_dict": True,
        }

    def _text_arguments(self, images: int) -> dict[str, Any]:
        """What the images of a call show, and how many they are."""
        if self._embeddings:  # a row each, for some pipelines do not repeat embeddings that they are given
            rows = {name: repeated(value, images) for name, value in self._embeddings.items()}
            return {**rows, "num_images_per_prompt": 1}
        if self._text is None:
            with torch.no_grad():
                self._text = self._encode_text(self._prompt)
        return {**self._text, "num_images_per_prompt": images}

    def for_drafts(self, steps: int, spacing: float | None = None) -> Sampler:
        """A sampler that draws the same noise and spends few steps on it, by `spacing.SOLVER` where that can be.

        Args:
            steps: Number of scheduler steps.
            spacing: Exponent of the time steps, as in `sp_rerank.diffusion.spacing`; None for the scheduler's own.

        Raises:
            UsageError: If the scheduler cannot take as many, or the pipeline no time steps.
        """
        self.call_arguments([])  # encodes the text, once for both
        other = copy(self)
        other._scheduler = draft_scheduler(self.pipe.scheduler, given=spacing is not None)
        other._arguments = {name: value for name, value in self._arguments.items() if name not in TIMES}
        other._arguments["num_inference_steps"] = steps
        if spacing is not None:
            first, takes = first_time(self.scheduler, self._arguments, self.steps), parameters_of(self.call)
            other._arguments |= time_steps(other.scheduler, takes, first=first, steps=steps, exponent=spacing)
        other._check_steps()
        return other

    def call_pipeline(self, seeds: Sequence[int], before: twin.Before) -> Any:
        """One call of the pipeline through a twin of it; see `twin.make_twin`."""
        arguments = self.call_arguments(seeds)
        if self.on_step is not None:
            before = twin.count_steps(before, self.steps, len(seeds), self.on_step)
        double = twin.make_twin(self.pipe, scheduler=self._scheduler, before=before)
        try:
            with pipeline_errors(self.pipe):
                return twin.bind_call(self.call, self.pipe, double)(**arguments)
        finally:
            twin.free_hooks(self.pipe)
            if getattr(double, "_interrupt", False):
                vars(self.pipe)["_interrupt"] = True

    def _attempt(self, indices: list[int], seeds: list[int]) -> Batch | None:
        """One batch, or None when memory ran out: the exception must be gone before the memory can be freed."""
        try:
            return self._make(indices, seeds)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def shrink(self, failed: int) -> None:
        """Make smaller batches from here on, for memory did not suffice for one of `failed`.

        Raises:
            TryAgainError: If that was a single image.
        """
        if failed == 1:
            raise TryAgainError(
                "memory does not suffice for a single image: free some and resume the run, or start anew in half "
                "precision (dtype float16) or with smaller images (height, width)"
            )
        self._memory.images = 1 << ((failed - 1).bit_length() - 1)  # a power of two: a batch is found again by its size
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        log.warning("out of memory with %d images at once, going on with %d", failed, self._memory.images)

    @torch.no_grad()
    def _make(self, indices: list[int], seeds: list[int]) -> Batch:
        nfe = 0

        def count(args: tuple[Any, ...], more: dict[str, Any]) -> twin.Inputs:
            nonlocal nfe
            nfe += 1
            return args, more

        output = self.call_pipeline(self._filled(seeds), count)
        return batch_of(output, indices, seeds, nfe)

    def _filled(self, seeds: list[int]) -> list[int]:
        """The seeds of a call: a compiled denoiser always gets a whole batch, for another size is compiled anew."""
        return [*seeds, *seeds[-1:] * (self._limit - len(seeds))] if is_compiled(self.pipe) else seeds

    def _encode_text(self, prompt: str) -> dict[str, Any]:
        return encode_text(self.pipe, self.call, prompt, self._negative_prompt, self._arguments)


def sampler_of(
    config: RunConfig,
    pipe: Any,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    memory_limit: MemoryLimit | None = None,
) -> Sampler:
    """The sampler that makes a run's candidates, perhaps with other steps or larger batches."""
    options = sampler_options(config, steps=steps, batch_size=batch_size, memory_limit=memory_limit)
    return Sampler(pipe, config.prompt, **options)


def sampler_options(
    config: RunConfig,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    memory_limit: MemoryLimit | None = None,
) -> dict[str, Any]:
    """What `Sampler` is given for a run beside pipeline and prompt.

    Raises:
        OptionError: If an argument of the pipeline is an option of its own.
    """
    sizes = {name: side for name, side in (("height", config.height), ("width", config.width)) if side}
    taken = [name for name in config.pipe_kwargs if name in OPTIONS]
    if taken:
        raise OptionError(
            "pipe_kwargs", taken[0], "further arguments of the pipeline; this one is an option of its own"
        )
    return {
        "batch_size": batch_size or config.batch_size,
        "guidance_scale": config.guidance_scale,
        "negative_prompt": config.negative_prompt or None,
        "memory_limit": memory_limit,
        "num_inference_steps": steps or config.steps,
        **sizes,
        **config.pipe_kwargs,
    }
