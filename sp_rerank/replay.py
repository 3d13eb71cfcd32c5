"""Makes one candidate of a run again: the same pixels, or the same seed with other steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_rerank.errors import UsageError
from sp_rerank.run.png import to_png
from sp_rerank.storage import atomic
from sp_rerank.storage.images import to_images
from sp_rerank.types import Candidate

if TYPE_CHECKING:
    from PIL import Image

    from sp_rerank.run.folder import RunDir


def replay(run: RunDir, index: int, *, pipe: Any, steps: int | None = None) -> Image.Image:
    """Make one candidate of a run again.

    With the run's own steps its whole batch is made again, so that on the same machine every pixel is the same; with
    other steps only this seed is made.

    Args:
        run: a run folder.
        index: of the candidate.
        pipe: the run's model, on the run's device in its precision.
        steps: other than the run's own.

    Raises:
        UsageError: if the candidate is not in the run, the run does not say how it was made, or it was steered.
        TryAgainError: if memory does not suffice for the batch.
    """
    from sp_rerank.diffusion.sampler import sampler_of

    run.config.require("prompt", "steps", "guidance_scale", "batch_size")
    if index not in run.rows:
        raise UsageError(f"no candidate {index} in {run.path}; it holds {len(run.rows)} of 0..{run.n - 1}")
    config = run.config
    again = [index] if steps else _together(run, index)
    sampler = sampler_of(config, pipe, steps=steps, batch_size=run.n)  # one batch, whatever indices it holds
    for batch in sampler.batches({i: config.seed + i for i in again}):
        if index in batch.indices:  # one batch, unless memory is scarcer now
            return to_images(batch.images)[batch.indices.index(index)]
    raise AssertionError("the sampler makes every index that it is given")


def replay_to(run: RunDir, index: int, target: Path, *, pipe: Any, steps: int | None = None) -> bool | None:
    """`replay` into a PNG file, which tells how it was made.

    Returns:
        Whether every pixel is that of the run's image; None with other steps, or if a search dropped it unfinished.

    Raises:
        StorageError: if the file cannot be written.
    """
    image = replay(run, index, pipe=pipe, steps=steps)
    run.config.require("scheduler", "model")
    config = replace(run.config, steps=steps or run.config.steps)
    png = to_png(Candidate(index, config.seed + index, image), config, {"replayed": True})
    with atomic.storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(target, png)
    if steps or run.rows[index].status == "dropped":  # its file is a draft
        return None
    return image.tobytes() == run.read_image(index).tobytes()


def _together(run: RunDir, index: int) -> list[int]:
    """The indices that a candidate was made together with, as its search made its batches."""
    batch_size, made_with = run.config.batch_size, run.rows[index].batch_size
    start, stop, search = next(part for part in run.config.parts() if part.start <= index < part.stop)
    if search.strategy == "screening":  # the finalists made batches of their own
        return batch_of(index, made_with, batch_size, sorted(i for i in run.finished if start <= i < stop))
    if not search.replayable:
        raise UsageError(
            f"{run.path} was steered: its images descend from others of their batch, so no seed alone makes one again; "
            "expected a run of another search, or other steps"
        )
    if search.strategy == "halving":  # cut on the way; it began whole
        made_with = min(batch_size, stop - start - (index - start) // batch_size * batch_size)
    return batch_of(index, made_with, batch_size, range(start, stop))


def batch_of(index: int, made_with: int, batch_size: int, finished: Sequence[int]) -> list[int]:
    """The indices that were made together with one.

    Blocks are `batch_size` of the finished ones. A block that memory split was cut into pieces of a power of two, its
    rest into one smaller piece at the end.

    Args:
        index: of the candidate.
        made_with: size of the batch that it was made in.
        batch_size: of the run.
        finished: the indices that the run made with all steps, rising.
    """
    if index not in finished:
        return [index]
    place = finished.index(index)
    first = place // batch_size * batch_size
    length = min(batch_size, len(finished) - first)
    power_of_two = made_with & (made_with - 1) == 0
    start = (place - first) // made_with * made_with if power_of_two else length - made_with
    return list(finished[first + start : first + start + made_with])
