"""A twin of a pipeline for one call: the same modules, state of its own.

The twin shares weights, but has its own scheduler (which holds the state of a loop), its own flags, and stand-ins that
see the calls of the denoiser. So the caller's pipeline is not touched, there is nothing to put back, and several
threads can use one pipeline. Knows how a diffusers pipeline is put together; knows nothing of steps or batches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import copy, deepcopy
from types import MethodType
from typing import TYPE_CHECKING, Any

from sp_rerank.errors import UsageError

if TYPE_CHECKING:
    from sp_rerank.types import TextToImagePipeline

DENOISERS = ("unet", "transformer")
STAGES = ("prior", "decoder")
"""Denoisers of pipelines that have none of DENOISERS (Wuerstchen, Stable Cascade, the priors of Kandinsky)."""

TOKENIZING = threading.RLock()
"""Held while a tokenizer works: those of transformers keep truncation and padding as state that all calls share."""

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a denoiser."""

Before = Callable[[tuple[Any, ...], dict[str, Any]], Inputs]
"""Called with a denoiser's positional and keyword arguments; returns those that it gets."""


def find_denoiser(pipe: TextToImagePipeline) -> tuple[str, Any] | None:
    """Name and module of a pipeline's denoiser; None where it has no known one."""
    for name in (*DENOISERS, *STAGES):
        module = getattr(pipe, name, None)
        if module is not None:  # a compiled module has no truth value
            return name, module
    return None


def make_twin(pipe: TextToImagePipeline, *, scheduler: object = None, before: Before) -> Any:
    """A copy of a pipeline for one call, at the cost of its scheduler's memory.

    Args:
        pipe: A pipeline, also one that is made of others (Kandinsky, Wuerstchen), whose parts get twins too.
        scheduler: Takes the place of the pipeline's own where it is given; the twin gets a copy.
        before: Called before each call of a denoiser.
    """
    from sp_rerank.diffusion.safety import checker_of

    own = getattr(pipe, "scheduler", None)
    copies: dict[int, Any] = {} if scheduler is None else {id(own): deepcopy(scheduler)}
    twin, check = _twin(pipe, copies, before), checker_of(pipe)
    if check is not None:
        vars(twin)["run_safety_checker"] = check
    return twin


def _twin(pipe: Any, copies: dict[int, Any], before: Before) -> Any:
    twin = copy(pipe)
    denoiser = find_denoiser(pipe)
    for name, value in vars(pipe).items():
        if id(value) in copies:
            stand_in = copies[id(value)]
        elif denoiser is not None and name == denoiser[0]:
            stand_in = Denoiser(value, before)
        elif name.endswith("scheduler") and value is not None:
            stand_in = deepcopy(value)
        elif "tokenizer" in name and callable(value):
            stand_in = Tokenizer(value)
        elif name.endswith("_pipe") and callable(value):
            stand_in = _twin(value, copies, before)
        else:
            continue
        if not isinstance(stand_in, Denoiser):
            copies[id(value)] = stand_in
        # not by setattr, which would write the stand-ins into the pipeline's configuration
        vars(twin)[name] = stand_in
    # offloading forgets modules that it does not know: the hooks of the whole pipeline are freed by `free_hooks`
    vars(twin)["maybe_free_model_hooks"] = lambda: None
    return twin


def count_steps(before: Before, steps: int, images: int, on_step: Callable[[float], None]) -> Before:
    """The same, and `on_step` gets the share of the steps that is done, in images, before each call of the denoiser."""
    calls = 0

    def counted(args: tuple[Any, ...], more: dict[str, Any]) -> Inputs:
        nonlocal calls
        on_step(images * min(1.0, calls / steps))
        calls += 1
        return before(args, more)

    return counted


def bind_call(call: Callable[..., Any], pipe: TextToImagePipeline, twin: Callable[..., Any]) -> Callable[..., Any]:
    """What is called in place of `call`: the twin, or the same method of the twin.

    Raises:
        UsageError: If `call` is neither the pipeline nor one of its methods.
    """
    if call is pipe:
        return twin
    if getattr(call, "__self__", None) is not pipe:
        raise UsageError(f"call is {call!r}; expected the pipeline or one of its methods")
    return MethodType(getattr(call, "__func__"), twin)  # noqa: B009 (a callable need not have one)


def clear_interrupt(pipe: TextToImagePipeline) -> None:
    """Forget that a pipeline was interrupted, as it does when it is called; a twin's call does not reach it."""
    if hasattr(type(pipe), "interrupt"):
        vars(pipe)["_interrupt"] = False


def free_hooks(pipe: TextToImagePipeline) -> None:
    """Let a pipeline offload its modules and reset the caches of its denoiser, as it does at the end of a call."""
    free = getattr(pipe, "maybe_free_model_hooks", None)
    if free is not None:
        free()


class Denoiser:
    """Stands before a pipeline's denoiser; not a module, so that nothing is compiled, moved or saved because of it."""

    def __init__(self, denoiser: Callable[..., Any], before: Before) -> None:
        self._denoiser, self._before = denoiser, before

    def __call__(self, *args: object, **more: object) -> Any:
        """What the denoiser returns for the inputs that `before` lets through."""
        args, more = self._before(args, more)
        return self._denoiser(*args, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)


class Tokenizer:
    """Stands before a tokenizer and lets one thread at a time use it."""

    def __init__(self, tokenizer: Callable[..., Any]) -> None:
        self._tokenizer = tokenizer

    def __call__(self, *args: object, **more: object) -> Any:
        """What the tokenizer returns."""
        with TOKENIZING:
            return self._tokenizer(*args, **more)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._tokenizer, name)
        return _locked(value) if isinstance(value, MethodType) else value


def _locked(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: object, **more: object) -> Any:
        with TOKENIZING:
            return method(*args, **more)

    return call
