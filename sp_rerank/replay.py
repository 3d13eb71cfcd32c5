"""Makes candidates of a run again: the same pixels, the same seed with other steps, or the same image larger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_rerank.config.rules import Rule, number, or_none
from sp_rerank.errors import OptionError, UsageError
from sp_rerank.run.png import to_png
from sp_rerank.storage import atomic
from sp_rerank.storage.images import to_images
from sp_rerank.types import Candidate

if TYPE_CHECKING:
    from PIL import Image

    from sp_rerank.run.folder import RunDir


SCALE = or_none(Rule("a number from 1 to 8", lambda v: number(1).holds(v) and float(str(v)) <= 8))
SHARE = Rule("a number above 0, at most 1", lambda v: number(0, above=True).holds(v) and float(str(v)) <= 1)
STRENGTH = 0.35
"""How much of a candidate is made anew when it is made larger: details follow the size, the composition stays."""


def replay(
    run: RunDir,
    index: int,
    *,
    pipe: Any,
    steps: int | None = None,
    scale: float | None = None,
    strength: float = STRENGTH,
) -> Image.Image:
    """Make one candidate of a run again, perhaps larger.

    With the run's own steps its whole batch is made again, so that on the same machine every pixel is the same; with
    other steps only this seed is made. With a scale its image is made larger: scaled up, noised and denoised again by
    the model's own weights.

    Args:
        run: A run folder.
        index: Of the candidate.
        pipe: The run's model, on the run's device in its precision.
        steps: Other than the run's own.
        scale: Of the sides, from 1 to 8; None makes it as large as it was.
        strength: With a scale, how much is made anew, above 0 and at most 1.

    Raises:
        UsageError: If the candidate is not in the run, the run does not say how it was made, it was steered, or the
            model's family has no image-to-image pipeline.
        NothingUsableError: If the safety checker replaced the larger image.
        TryAgainError: If memory does not suffice.
    """
    return Replays(run, pipe, steps=steps, scale=scale, strength=strength).image(index)


class Replays:
    """Several candidates of a run, made again; those of one batch together. Arguments and errors as in `replay`."""

    def __init__(
        self,
        run: RunDir,
        pipe: Any,
        *,
        steps: int | None = None,
        scale: float | None = None,
        strength: float = STRENGTH,
    ) -> None:
        run.config.require("prompt", "steps", "guidance_scale", "batch_size")
        for name, value, rule in (("scale", scale, SCALE), ("strength", strength, SHARE)):
            if not rule.holds(value):
                raise OptionError(name, value, rule.expected)
        self.run, self.steps, self.scale, self.strength = run, steps, scale, strength
        self._pipe = pipe
        self._made: dict[int, Image.Image] = {}
        self._image_to_image: Any = None

    def image(self, index: int) -> Image.Image:
        """One of them.

        Args:
            index: Of the candidate.
        """
        self.run.check_holds([index])
        return self._made_again(index) if self.scale is None else self._made_larger(index, self.scale)

    def write(self, index: int, target: Path) -> bool | None:
        """One of them as a PNG file, which tells how it was made.

        Returns:
            Whether every pixel is that of the run's image; None where that is not to be expected: with other steps or
            a scale, or if a search dropped it unfinished.

        Raises:
            StorageError: If the file cannot be written.
        """
        run = self.run
        run.config.require("scheduler", "model")
        image, larger = self.image(index), {"scale": self.scale, "strength": self.strength} if self.scale else {}
        config = replace(run.config, steps=self.steps or run.config.steps)
        png = to_png(Candidate(index, config.seed + index, image), config, {"replayed": True, **larger})
        with atomic.storage_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(target, png)
        if self.steps or self.scale or run.rows[index].status == "dropped":  # whose file is a draft
            return None
        return image.tobytes() == run.read_image(index).tobytes()

    def _made_again(self, index: int) -> Image.Image:
        from sp_rerank.diffusion.sampler import sampler_of

        if index not in self._made:
            config, run = self.run.config, self.run
            again = [index] if self.steps else _together(run, index)
            # one batch, whatever indices it holds, unless memory is scarcer now; a compiled one is filled up
            size = config.batch_size if config.compiled else run.n
            sampler = sampler_of(config, self._pipe, steps=self.steps, batch_size=size)
            for batch in sampler.batches({i: config.seed + i for i in again}):
                self._made |= zip(batch.indices, to_images(batch.images), strict=True)
        return self._made[index]

    def _made_larger(self, index: int, scale: float) -> Image.Image:
        from sp_rerank.diffusion import enlarging

        run, status = self.run, self.run.rows[index].status
        if status not in ("ok", "dropped"):
            raise UsageError(f"candidate {index} of {run.path} is {status}: there is no image of it to make larger")
        remake = self.steps or status == "dropped"
        image = self._made_again(index) if remake else run.read_image(index)
        self._image_to_image = self._image_to_image or enlarging.image_to_image(self._pipe)
        return enlarging.enlarge(
            self._image_to_image, image, run.config, seed=run.config.seed + index,
            steps=self.steps or run.config.steps, scale=scale, strength=self.strength,
        )  # fmt: skip


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
