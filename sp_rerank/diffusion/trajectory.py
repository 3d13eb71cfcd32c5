"""Trajectories: the own loop of a stock pipeline, watched and cut on its way.

Knows schedulers, their history, noise and whose turn it is; knows nothing of scores or images. No loop is copied: each
batch runs in a shallow copy of the pipeline whose scheduler and denoiser are seen through, so the caller's pipeline is
not touched and there is nothing to put back. A batch waits at a watched step in a greenlet of its own, so that the
candidates of all batches can be compared before any of them goes on. All run in the caller's thread: in a second one
PyTorch took a third longer for the same steps on two CPU cores.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from greenlet import getcurrent, greenlet

from sp_rerank.diffusion.sampler import Batch
from sp_rerank.diffusion.schedulers import SCREEN, continued, cut_state, predict_x0
from sp_rerank.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from sp_rerank.diffusion.sampler import Sampler

DENOISERS = ("unet", "transformer")
NOT_BATCHED = ("txt_ids", "img_ids")
"""Conditions of a denoiser whose first axis counts tokens (Flux), not images."""


@dataclass(frozen=True, slots=True)
class View:
    """What a batch shows while it waits at a watched step.

    Attributes:
        x0: (b, ...) the guided model's prediction of the finished latents, laid out as the pipeline holds its latents.
        nfe: denoiser calls that each candidate has taken since the watched step before.
        stochastic: whether the scheduler has drawn noise on the way.
    """

    x0: Tensor
    nfe: int
    stochastic: bool


class Trajectory:
    """One batch on its way through the pipeline's loop; it starts when it is first looked at.

    Args:
        sampler: whose pipeline, text and arguments are taken.
        seeds: index -> seed.
        watched: scheduler steps after which it can be looked at and cut, rising, each below the number of steps.

    Attributes:
        indices: of the candidates that are left.

    Raises:
        UsageError: if the pipeline cannot be watched.
    """

    def __init__(self, sampler: Sampler, seeds: Mapping[int, int], watched: Sequence[int]) -> None:
        check_watchable(sampler)
        self.indices = tuple(seeds)
        self._sampler, self._seeds, self._watched = sampler, dict(seeds), tuple(watched)
        self._cuts: dict[int, tuple[int, ...]] = {}
        self._goal = 0
        self._loop: Any = None
        self._turn = greenlet(self._make)

    def look(self, number: int) -> View:
        """Go on to the watched step of this number, past earlier ones with what was decided for them.

        Raises:
            UsageError: if the pipeline ended before it, or the scheduler does not tell what it predicts.
            Exception: what the pipeline raised, such as torch.OutOfMemoryError.
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

    def keep(self, number: int, kept: Sequence[int]) -> None:
        """Let only these go on from the watched step of this number; with none left the trajectory ends.

        Args:
            number: of the watched step; it may lie ahead.
            kept: places among `indices`, each at most once.
        """
        self.indices = tuple(self.indices[place] for place in kept)
        self._cuts[number] = tuple(kept)
        if not kept:
            self.close()

    def resample(self, number: int, ancestors: Sequence[int]) -> None:
        """Let each candidate go on from the state that one of them has at the watched step of this number.

        Args:
            number: of the watched step; it may lie ahead.
            ancestors: for each of `indices` a place among them. The first copy of an ancestor goes on with its noise,
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
        arguments = self._sampler.call_arguments(list(self._seeds.values()))
        self._loop = _Loop(self._sampler, arguments, self._at_step)
        try:
            output = self._loop.run()
            flagged = getattr(output, "nsfw_content_detected", None) or [False] * len(self.indices)
            seeds = tuple(self._seeds[index] for index in self.indices)
            return Batch(self.indices, seeds, output.images, tuple(map(bool, flagged)), self._loop.evaluations)
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
        self._loop.evaluations = 0
        return self._cuts.get(number)

    def _number_of(self, done: int, total: int) -> int | None:
        """The watched step that falls on a step of the loop, which is longer for two calls a step (Heun) or PNDM."""
        steps = self._sampler.steps
        places = [max(1, round(step * total / steps)) for step in self._watched]
        return places.index(done) if done in places else None


@contextmanager
def side_by_side(sampler: Sampler, seeds: Mapping[int, int], watched: Sequence[int]) -> Iterator[list[Trajectory]]:
    """The batches that `sampler.batches` would make, as trajectories; whatever happens, none is left behind.

    Args:
        sampler: makes the images.
        seeds: index -> seed.
        watched: as for `Trajectory`.
    """
    batches = sampler.blocks(seeds)
    trajectories = [Trajectory(sampler, {index: seeds[index] for index in batch}, watched) for batch in batches]
    try:
        yield trajectories
    finally:
        for trajectory in trajectories:
            trajectory.close()
        free = getattr(sampler.pipe, "maybe_free_model_hooks", None)
        if free:
            free()


def check_watchable(sampler: Sampler) -> None:
    """Refuse a pipeline whose loop cannot be seen into or cut.

    Raises:
        UsageError: naming one that can.
    """
    pipe = sampler.pipe
    name = type(pipe).__name__
    takes = inspect.signature(type(pipe).__call__).parameters
    if "callback_on_step_end" not in takes or "latents" not in getattr(pipe, "_callback_tensor_inputs", ()):
        raise UsageError(
            f"{name} has no callback_on_step_end with latents, so it cannot be cut on its way; expected a pipeline "
            f"such as StableDiffusionPipeline, {SCREEN}"
        )
    if not callable(getattr(pipe.scheduler, "step", None)):
        raise UsageError(f"{name} has no scheduler with step(); expected one of diffusers such as DDIM, {SCREEN}")
    if getattr(_denoiser(pipe)[1], "is_cache_enabled", False):
        raise UsageError(
            f"the cache between steps of this {name} mixes batches that take turns; call disable_cache(), {SCREEN}"
        )


class _Loop:
    """A call of a pipeline: its scheduler seen through, its batch cut between two steps.

    Args:
        sampler: whose pipeline is called.
        arguments: of the call.
        at_step: gets the steps done, the steps of the loop and what makes a view; returns the places in the batch
            that go on, or None for all.

    Attributes:
        evaluations: denoiser calls so far; the owner may set it back.
    """

    def __init__(
        self,
        sampler: Sampler,
        arguments: dict[str, Any],
        at_step: Callable[[int, int, Callable[[], View]], tuple[int, ...] | None],
    ) -> None:
        self.evaluations = 0
        self._arguments, self._at_step = dict(arguments), at_step
        self._generators: list[torch.Generator] = arguments["generator"]
        self._scheduler = deepcopy(sampler.scheduler)
        self._last: tuple[Any, Tensor, Any, Tensor] | None = None
        self._stochastic = False
        self._whole = len(self._generators)
        self._origin: Tensor | None = None
        """Of each item of a batch that was cut, its place in the whole one."""
        self._pipe, self._call = self._seen_through(sampler)
        self._users_callback = arguments.get("callback_on_step_end")
        self._arguments["callback_on_step_end"] = self._on_step_end
        self._arguments["callback_on_step_end_tensor_inputs"] = self._tensor_inputs()

    def run(self) -> Any:
        """The pipeline's own output."""
        return self._call(**self._arguments)

    def _seen_through(self, sampler: Sampler) -> tuple[Any, Callable[..., Any]]:
        """A copy of the pipeline with a scheduler and a denoiser of its own, and the bound method to call."""
        pipe = copy(sampler.pipe)
        name, denoiser = _denoiser(pipe)
        vars(self._scheduler)["step"] = self._watched_step(self._scheduler.step)
        # not by setattr, which would write the stand-ins into the pipeline's configuration
        vars(pipe)["scheduler"] = self._scheduler
        vars(pipe)[name] = _Denoiser(denoiser, self._before_denoising)
        # offloading forgets modules that it does not know; `side_by_side` frees the hooks of the whole pipeline
        vars(pipe)["maybe_free_model_hooks"] = lambda: None
        call: Any = sampler.call
        if call is sampler.pipe:
            return pipe, pipe
        if getattr(call, "__self__", None) is not sampler.pipe:
            raise UsageError(f"call is {call!r}; expected the pipeline or one of its methods")
        return pipe, MethodType(call.__func__, pipe)

    def _tensor_inputs(self) -> list[str]:
        """What the callback gets: what the user's own asked for, and the latents."""
        asked = getattr(self._users_callback, "tensor_inputs", None)
        asked = asked or self._arguments.get("callback_on_step_end_tensor_inputs") or ()
        return list(dict.fromkeys([*asked, "latents"]))

    def _watched_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        takes_noise = "generator" in inspect.signature(step).parameters

        @functools.wraps(step)  # the pipeline reads its signature
        def watched(
            model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, return_dict: bool = True, **more: Any
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
        return View(predict_x0(self._scheduler, *self._last), self.evaluations, stochastic)

    def _cut(self, latents: Tensor, kept: Sequence[int], step: int) -> Tensor:
        """The latents that go on; the scheduler's history, the noise and the conditions of later calls follow them."""
        places = torch.tensor(kept, device=latents.device)
        cut_state(self._scheduler, latents.shape, places)
        # in place: the loop holds this very list
        self._generators[:] = continued(self._generators, kept, step)
        self._origin = places if self._origin is None else self._origin[places]
        return latents[places]

    def _before_denoising(self, args: tuple[Any, ...], more: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Count the call, and cut what the loop still hands over for the whole batch."""
        self.evaluations += 1
        latents = args[0] if args else more["hidden_states"]
        if self._origin is None or len(self._origin) == self._whole:
            return args, more  # a batch as large as the whole: every item has the conditions of the one prompt
        groups = len(latents) // len(self._origin)  # 2 where guidance doubles the batch
        cut = functools.partial(_cut_conditions, groups=groups, whole=self._whole, origin=self._origin)
        return tuple(map(cut, args)), cut(more)


class _Denoiser:
    """Stands before a pipeline's denoiser; not a module, so that nothing is compiled, moved or saved on its account."""

    def __init__(self, denoiser: Any, before: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
        self._denoiser, self._before = denoiser, before

    def __call__(self, *args: Any, **more: Any) -> Any:
        args, more = self._before(args, more)
        return self._denoiser(*args, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)


def _denoiser(pipe: Any) -> tuple[str, Any]:
    """Name and module of what `counted` counts."""
    found = [(name, module) for name in DENOISERS if (module := getattr(pipe, name, None)) is not None]
    if not found:
        raise UsageError(
            f"{type(pipe).__name__} has no {' or '.join(DENOISERS)}; expected a pipeline with one, {SCREEN}"
        )
    return found[0]


def _cut_conditions(value: Any, *, groups: int, whole: int, origin: Tensor) -> Any:
    """The rows of the batch that is left in whatever a denoiser takes for each image of the whole batch."""
    cut = functools.partial(_cut_conditions, groups=groups, whole=whole, origin=origin)
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == groups * whole:
        return value.unflatten(0, (groups, whole))[:, origin.to(value.device)].flatten(0, 1)
    if isinstance(value, dict):
        return {name: one if name in NOT_BATCHED else cut(one) for name, one in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(map(cut, value))
    return value
