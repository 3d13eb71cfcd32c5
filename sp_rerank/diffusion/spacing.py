"""Time steps of a draft: from the first step of the run's own scheduler down, spaced by an exponent.

Checkpoints of Stable Diffusion space their steps so that few of them begin late ("leading": 4 steps begin at time 801
of 1000), on noise that belongs to the beginning. A draft takes t_i = t_0 (1 - i / N)^p instead, i = 0..N-1, with t_0
where the run itself begins; of a flow, whose noise levels are given, sigma_i = (1 - i / N)^p. Below 1 the exponent puts
more steps early, where an image takes its shape. Knows schedulers and what a pipeline's call takes; makes no image.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from copy import deepcopy
from itertools import pairwise
from typing import Any

from sp_rerank.errors import UsageError

TIMES = ("timesteps", "sigmas")
"""Arguments of a pipeline that say where its steps lie."""

SOLVER = "DPMSolverMultistepScheduler"
"""Of the drafts: DPM-Solver++ of second order (Lu et al. 2022, arXiv 2211.01095), good from few steps on."""

PLAIN = dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"), False)
"""Options of the solver with which it refuses given time steps."""


def draft_scheduler(own: Any, *, given: bool) -> Any:
    """The solver with the settings of a model's own scheduler; None where the model cannot take it.

    Args:
        own: The scheduler of the pipeline.
        given: Whether it is to take given time steps.
    """
    kinds = {kind.__name__: kind for kind in getattr(own, "compatibles", ())}
    return kinds[SOLVER].from_config(own.config, **(PLAIN if given else {})) if SOLVER in kinds else None


def first_time(scheduler: Any, arguments: Mapping[str, Any], steps: int) -> float:
    """Time of the first step of a run; 0 of a flow, whose times may depend on the size of the image.

    Args:
        scheduler: The run's own.
        arguments: Of the pipeline's call; a person may have given `timesteps` there.
        steps: Number of scheduler steps.
    """
    if arguments.get("timesteps") is not None:
        return float(arguments["timesteps"][0])
    if is_flow(scheduler) or not hasattr(scheduler, "set_timesteps"):
        return 0.0
    trial = deepcopy(scheduler)
    trial.set_timesteps(steps)
    return float(trial.timesteps[0])


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler is one of flow matching, which takes noise levels."""
    return hasattr(scheduler, "scale_noise")


def takes_time_steps(pipe: Any, takes: Mapping[str, Any]) -> bool:
    """Whether drafts of a pipeline can have time steps of their own."""
    own = getattr(pipe, "scheduler", None)
    try:
        time_steps(draft_scheduler(own, given=True) or own, takes, first=900.0, steps=4, exponent=1.0)
    except UsageError:
        return False
    return True


def spaced(first: float, steps: int, exponent: float) -> list[float]:
    """(steps,) falling times or noise levels from the first one on: first (1 - i / steps)^exponent."""
    return [first * (1 - i / steps) ** exponent for i in range(steps)]


def time_steps(
    scheduler: Any, takes: Mapping[str, Any], *, first: float, steps: int, exponent: float
) -> dict[str, list[int] | list[float]]:
    """What a pipeline is called with so that its scheduler takes these steps: `timesteps`, or `sigmas` of a flow.

    Args:
        scheduler: That of the draft.
        takes: The parameters of the pipeline's call.
        first: Time of the first step of the run's own scheduler; of no matter to a flow, which begins at 1.
        steps: Number of steps.
        exponent: See above.

    Raises:
        UsageError: If the pipeline or the scheduler takes neither, or if two steps would fall on one time.
    """
    accepts = inspect.signature(scheduler.set_timesteps).parameters if hasattr(scheduler, "set_timesteps") else {}
    name = "sigmas" if is_flow(scheduler) else "timesteps"
    if name not in takes or name not in accepts:
        raise UsageError(
            f"{type(scheduler).__name__} takes no {name} here, which the drafts of this search need; take a schedule "
            "without spacing, or the search 'exhaustive'"
        )
    if name == "sigmas":
        return {name: spaced(1.0, steps, exponent)}
    times = [round(time) for time in spaced(first, steps, exponent)]
    if any(later >= earlier for earlier, later in pairwise(times)):
        raise UsageError(f"{steps} steps with a spacing of {exponent:g} fall on one time; expected fewer steps")
    trial = deepcopy(scheduler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the scheduler's own arithmetic; the run itself still warns
            trial.set_timesteps(timesteps=times)
        taken = [round(float(time)) for time in trial.timesteps]
    except (ValueError, TypeError, IndexError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"{type(scheduler).__name__} cannot take the time steps {times}: {reason}; take a schedule without spacing"
        ) from error
    if taken != times:
        raise UsageError(
            f"{type(scheduler).__name__} makes {taken} of the time steps {times}; take a schedule without spacing"
        )
    return {name: times}
