"""Trajectories: the loop of a stock pipeline, watched and cut on its way.

Knows schedulers, their history, noise and which batch runs; knows nothing of scores or images. No loop is copied: each
batch runs in a twin of the pipeline whose scheduler and denoiser are watched. A batch waits at a watched step in a
greenlet, so that the candidates of all batches can be compared before any of them goes on. All run in the caller's
thread: in a second one PyTorch took a third longer for the same steps on two CPU cores.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from greenlet import getcurrent, greenlet

from sp_rerank.diffusion import twin
from sp_rerank.diffusion.batches import Batch, batch_of
from sp_rerank.diffusion.call_arguments import pipeline_errors
from sp_rerank.diffusion.schedulers import INSTEAD, SCREEN, fork_generators, predict_x0, slice_state
from sp_rerank.diffusion.watchable import check_watchable
from sp_rerank.errors import UnwatchableError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from sp_rerank.diffusion.sampler import Sampler

NOT_BATCHED = ("txt_ids", "img_ids")
"""Conditions of a denoiser whose first axis counts tokens (Flux), not images."""


@dataclass(frozen=True, slots=True)
class View:
    """What a batch shows while it waits at a watched step.

    Attributes:
        x0: (b, ...) the guided model's prediction of the finished latents, laid out as the pipeline holds its latents.
        nfe: Denoiser calls that each candidate has taken since the watched step before.
        stochastic: Whether the scheduler has drawn noise on the way.
    """

    x0: Tensor
    nfe: int
    stochastic: bool


class Trajectory:
    """One batch on its way through the pipeline's loop; it starts when it is first advanced.

    Args:
        sampler: Gives the pipeline, its text and its arguments.
        seeds: index -> seed.
        watched: Scheduler steps after which the batch can be looked at and cut, rising, each below the number of steps.

    Attributes:
        indices: Indices of the candidates that are left.

    Raises:
        UnwatchableError: If the pipeline cannot be watched.
    """

    def __init__(self, sampler: Sampler, seeds: Mapping[int, int], watched: Sequence[int]) -> None:
        check_watchable(sampler)
        self.indices = tuple(seeds)
        self._sampler, self._seeds, self._watched = sampler, dict(seeds), tuple(watched)
        self._cuts: dict[int, tuple[int, ...]] = {}
        self._goal = 0
        self._loop: _Loop | None = None
        self._turn = greenlet(self._make)

    def advance_to(self, number: int) -> View:
        """Go on to a watched step, past earlier ones with what was decided for them.

        Args:
            number: Place of the step among the watched ones.

        Raises:
            UsageError: If the pipeline ended before it, or the scheduler does not give what it predicts.
            Exception: What the pipeline raised, such as torch.OutOfMemoryError.
        """
        outcome = self._advance(number)
        if isinstance(outcome, View):
            return outcome
        raise UsageError(
            f"{type(self._sampler.pipe).__name__} was interrupted before step {self._watched[number]}, or does not "
            f"call callback_on_step_end after each step; expected a pipeline that does, {SCREEN}"
        )

    def finish(self) -> Batch:
        """Go on to the end: images of the candidates that are left, denoiser calls since the last watched step.

        Raises what the pipeline raises.
        """
        outcome = self._advance(len(self._watched))
        assert isinstance(outcome, Batch)
        return outcome

    def prune(self, number: int, kept: Sequence[int]) -> None:
        """Let only these go on from a watched step; with none left the trajectory ends.

        Args:
            number: Place of the step among the watched ones; it may lie ahead.
            kept: Places among `indices`, each at most once.
        """
        self.indices = tuple(self.indices[place] for place in kept)
        self._cuts[number] = tuple(kept)
        if not kept:
            self.close()

    def resample(self, number: int, ancestors: Sequence[int]) -> None:
        """Let each candidate go on from the state that one of them has at a watched step.

        Args:
            number: Place of the step among the watched ones; it may lie ahead.
            ancestors: For each of `indices` a place among them. The first copy of an ancestor goes on with its noise,
                each further one draws noise of its own.
        """
        self._cuts[number] = tuple(ancestors)

    def close(self) -> None:
        """End it wherever it is: the pipeline leaves its loop as if it were interrupted at the step where it waits."""
        self._turn.parent = getcurrent()
        with torch.no_grad():  # as in _advance
            self._turn.throw()

    def _advance(self, goal: int) -> View | Batch:
        assert not self._turn.dead, "a trajectory that has ended cannot go on"
        self._goal = goal
        self._turn.parent = getcurrent()  # where it comes back to, with what it has or what the pipeline raised
        with torch.no_grad():  # of the whole thread: the pipeline's stays with it, the caller's comes back
            return self._turn.switch()

    def _make(self) -> Batch:
        self._loop = _Loop(self._sampler, tuple(self._seeds.values()), self._at_step)
        try:
            output = self._loop.run()
            seeds = [self._seeds[index] for index in self.indices]
            return batch_of(output, self.indices, seeds, self._loop.nfe)
        finally:
            self._loop = None  # with the last latents and the text of the batch

    def _at_step(self, done: int, total: int, view: Callable[[], View]) -> tuple[int, ...] | None:
        """Called after each step: waits if it is the one to wait at; the places that go on, or None for all."""
        number = self._number_of(done, total)
        if number is None:
            return None
        if number == self._goal:
            assert self._turn.parent is not None
            self._turn.parent.switch(view())
        assert self._loop
        self._loop.nfe = 0
        return self._cuts.get(number)

    def _number_of(self, done: int, total: int) -> int | None:
        """The watched step that falls on a step of the loop, which is longer for two calls a step (Heun) or PNDM."""
        steps = self._sampler.steps
        places = [max(1, round(step * total / steps)) for step in self._watched]
        return places.index(done) if done in places else None


@contextmanager
def open_trajectories(sampler: Sampler, seeds: Mapping[int, int], watched: Sequence[int]) -> Iterator[list[Trajectory]]:
    """The batches that `sampler.batches` would make, as trajectories; whatever happens, none is left behind.

    Args:
        sampler: Makes the images.
        seeds: index -> seed.
        watched: Scheduler steps, as for `Trajectory`.
    """
    twin.clear_interrupt(sampler.pipe)
    batches = sampler.blocks(seeds)
    trajectories = [Trajectory(sampler, {index: seeds[index] for index in batch}, watched) for batch in batches]
    try:
        yield trajectories
    finally:
        for trajectory in trajectories:
            trajectory.close()
        twin.free_hooks(sampler.pipe)


class _Loop:
    """A call of a pipeline: its scheduler watched, its batch cut between two steps.

    Args:
        sampler: Gives the pipeline that is called.
        seeds: Seeds of the batch.
        at_step: Gets the steps done, the steps of the loop and what makes a view; returns the places in the batch
            that go on, or None for all.

    Attributes:
        nfe: Denoiser calls so far; the owner may set it back.
    """

    def __init__(
        self,
        sampler: Sampler,
        seeds: Sequence[int],
        at_step: Callable[[int, int, Callable[[], View]], tuple[int, ...] | None],
    ) -> None:
        self.nfe = 0
        self._sampler, self._at_step = sampler, at_step
        self._arguments = sampler.call_arguments(seeds)
        self._generators: list[torch.Generator] = self._arguments["generator"]
        self._pipe = twin.make_twin(sampler.pipe, scheduler=sampler.scheduler, before=self._before_denoising)
        self._scheduler = self._pipe.scheduler
        vars(self._scheduler)["step"] = self._watched_step(self._scheduler.step)
        self._last: tuple[Any, Tensor, Any, Tensor] | None = None
        self._stochastic = False
        self._whole = len(self._generators)
        self._groups: int | None = None
        self._origin: Tensor | None = None
        """Of each item of a batch that was cut, its place in the whole one."""
        self._users_callback = self._arguments.get("callback_on_step_end")
        self._arguments["callback_on_step_end"] = self._on_step_end
        self._arguments["callback_on_step_end_tensor_inputs"] = self._tensor_inputs()

    def run(self) -> Any:
        """The pipeline's own output."""
        try:
            with pipeline_errors(self._sampler.pipe):
                return twin.bind_call(self._sampler.call, self._sampler.pipe, self._pipe)(**self._arguments)
        except UsageError as error:
            if self._origin is None or error.__cause__ is None:  # not cut yet, or one of ours
                raise
            raise self._uncuttable("goes on over the images that it began with") from error

    def _tensor_inputs(self) -> list[str]:
        """What the callback gets: what the user's own asked for, and the latents."""
        asked = getattr(self._users_callback, "tensor_inputs", None)
        asked = asked or self._arguments.get("callback_on_step_end_tensor_inputs") or ()
        return list(dict.fromkeys([*asked, "latents"]))

    def _watched_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        takes_noise = "generator" in inspect.signature(step).parameters

        @functools.wraps(step)  # the pipeline reads its signature
        def watched(
            model_output: Tensor, timestep: Any, sample: Tensor, *args: object, return_dict: bool = True, **more: object
        ) -> Any:
            if takes_noise and not args:
                # SD3 and Flux pass none, and a stochastic scheduler would draw what no seed determines
                more.setdefault("generator", self._generators)
            before = self._generators[0].get_state()
            output = step(model_output, timestep, sample, *args, return_dict=True, **more)
            self._stochastic |= not torch.equal(before, self._generators[0].get_state())
            self._last = (output, model_output, timestep, sample)
            return output if return_dict else output.to_tuple()

        return watched

    def _on_step_end(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        replaced = self._users_callback(pipe, step, timestep, tensors) if self._users_callback else {}
        latents = replaced.get("latents", tensors["latents"])
        kept = self._at_step(step + 1, pipe.num_timesteps, self._view)
        self._last = None
        return {**replaced, "latents": latents if kept is None else self._cut(latents, kept, step)}

    def _view(self) -> View:
        assert self._last
        stochastic = self._stochastic or getattr(self._scheduler, "noise_sampler", None) is not None
        return View(predict_x0(self._scheduler, *self._last), self.nfe, stochastic)

    def _cut(self, latents: Tensor, kept: Sequence[int], step: int) -> Tensor:
        """The latents that go on; the scheduler's history, the noise and the conditions of later calls follow them."""
        places = torch.tensor(kept, device=latents.device)
        slice_state(self._scheduler, latents.shape, places)
        # in place: the loop holds this very list
        self._generators[:] = fork_generators(self._generators, kept, step)
        self._origin = places if self._origin is None else self._origin[places]
        return latents[places]

    def _before_denoising(self, args: tuple[Any, ...], more: dict[str, Any]) -> twin.Inputs:
        """Count the call, and cut what the loop still hands over for the whole batch."""
        self.nfe += 1
        latents = args[0] if args else more.get("hidden_states", more.get("x"))
        if latents is None:
            raise self._uncuttable("calls its denoiser in a way that is not known here")
        listed = isinstance(latents, list)
        rows = self._whole if self._origin is None else len(self._origin)
        groups, rest = divmod(len(latents), rows)  # 2 groups where guidance doubles the batch
        self._groups = groups if self._groups is None else self._groups
        if rest or groups != self._groups:
            raise self._uncuttable(f"gives its denoiser {len(latents)} latents for {rows} images")
        if listed and groups > 1:  # Z-Image's loop goes on over the images that it began with
            raise self._uncuttable("guides image by image (guidance_scale above 0)")
        if self._origin is None or len(self._origin) == self._whole:
            return args, more  # a batch as large as the whole: every item has the conditions of the one prompt
        cut = functools.partial(_slice_conditions, groups=groups, whole=self._whole, origin=self._origin, listed=listed)
        return tuple(map(cut, args)), cut(more)

    def _uncuttable(self, what: str) -> UnwatchableError:
        name = type(self._sampler.pipe).__name__
        return UnwatchableError(f"{name} {what}, so its batch cannot be cut on its way; {INSTEAD}")


def _slice_conditions(value: Any, *, groups: int, whole: int, origin: Tensor, listed: bool) -> Any:
    """The rows of the batch that is left in whatever a denoiser takes for each image of the whole batch.

    Args:
        value: A tensor, or a list, tuple or dictionary of them.
        groups: How often the batch stands in a tensor: 2 with guidance.
        whole: Images of the whole batch.
        origin: Places of those that are left.
        listed: Whether the denoiser takes the images of a batch as a list.
    """
    cut = functools.partial(_slice_conditions, groups=groups, whole=whole, origin=origin, listed=listed)
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == groups * whole:
        return value.unflatten(0, (groups, whole))[:, origin.to(value.device)].flatten(0, 1)
    if isinstance(value, dict):
        return {name: item if name in NOT_BATCHED else cut(item) for name, item in value.items()}
    if listed and isinstance(value, list) and len(value) == groups * whole:
        return [value[group * whole + place] for group in range(groups) for place in origin.tolist()]
    if type(value) in {list, tuple}:
        return type(value)(map(cut, value))
    return value
