"""What diffusers' schedulers do not offer: the x_0 that a model predicts, the history of a batch cut, its noise forked.

Knows one scheduler at one step; knows nothing of loops or batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch

from sp_rerank.config.samplers import find_sampler
from sp_rerank.errors import UnwatchableError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

INSTEAD = "take screening (search 'fast'), which works with every pipeline"
SCREEN = f"or {INSTEAD}"


def check_steps(scheduler: Any, steps: int) -> None:
    """Refuse a number of steps that a scheduler cannot take.

    Raises:
        UsageError: Naming the scheduler and, where it has one, its own reason.
    """
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None or not hasattr(scheduler, "set_timesteps"):  # flows take any number, and may need the image's size
        return
    name, trained = type(scheduler).__name__, len(table)
    trial = deepcopy(scheduler)
    try:
        trial.set_timesteps(steps)
    except (ValueError, IndexError, ZeroDivisionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{name} cannot take {steps} steps: {reason}; expected another number of steps") from error
    # those without sigmas look the noise level up by the time step
    if not hasattr(trial, "sigmas") and int(trial.timesteps.max()) >= trained:
        raise UsageError(
            f"{name} cannot take {steps} steps: it begins at time {int(trial.timesteps.max())}, and the model was "
            f"trained on 0 to {trained - 1}; expected fewer steps"
        )


def predict_x0(scheduler: Any, output: Any, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
    """The finished latents that a model predicts, after `output = scheduler.step(model_output, timestep, sample)`.

    Taken from the scheduler's output where it holds one; else from the noise level of x_t = alpha x_0 + sigma e, by
    what the model predicts: e, x_0, v = alpha e - sigma x_0 (Salimans and Ho 2022, arXiv 2202.00512), or the flow's
    velocity e - x_0 (Esser et al. 2024, arXiv 2403.03206).

    Returns:
        Like `sample`, in its dtype.

    Raises:
        UnwatchableError: If the scheduler is of no known kind.
    """
    reported = getattr(output, "pred_original_sample", None)
    if reported is not None:
        return reported.to(sample.dtype)
    kind = "flow_prediction" if hasattr(scheduler, "scale_noise") else scheduler.config.get("prediction_type")
    prediction, noisy = model_output.float(), sample.float()
    if hasattr(scheduler, "precondition_outputs"):  # EDM's multistep solver
        x0 = scheduler.precondition_outputs(noisy, prediction, _sigma_before(scheduler))
    else:
        alpha, sigma = noise_level(scheduler, timestep)
        if kind == "epsilon":
            x0 = (noisy - sigma * prediction) / alpha
        elif kind == "sample":
            x0 = prediction
        elif kind == "v_prediction":
            x0 = alpha * noisy - sigma * prediction
        elif kind == "flow_prediction":
            x0 = noisy - sigma * prediction
        else:
            raise UnwatchableError(_unreadable(scheduler, f"predicts {kind!r}"))
    return x0.to(sample.dtype)


def noise_level(scheduler: Any, timestep: Any) -> tuple[float, float]:
    """alpha and sigma of x_t = alpha x_0 + sigma e at the last step of a scheduler that reports no x_0.

    Raises:
        UnwatchableError: If the scheduler is of no known kind.
    """
    if hasattr(scheduler, "scale_noise"):  # flow matching, Euler and Heun
        sigma = _sigma_before(scheduler)
        return 1 - sigma, sigma
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):  # DPM-Solver, UniPC, DEIS, SA-Solver
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(torch.tensor(_sigma_before(scheduler), dtype=torch.float64))
        return float(alpha), float(sigma)
    if hasattr(scheduler, "alphas_cumprod") and not hasattr(scheduler, "sigmas"):  # PNDM, LCM, TCD
        kept = float(scheduler.alphas_cumprod[int(timestep)])
        return kept**0.5, (1 - kept) ** 0.5
    raise UnwatchableError(_unreadable(scheduler, "does not give its noise level"))


def _sigma_before(scheduler: Any) -> float:
    return float(scheduler.sigmas[scheduler.step_index - 1])


def _unreadable(scheduler: Any, fault: str) -> str:
    return (
        f"{type(scheduler).__name__} {fault}, so no preview can be made of it; expected one of Stable Diffusion or "
        f"flow matching such as DPMSolverMultistep, {SCREEN}"
    )


def slice_state(scheduler: Any, shape: torch.Size, places: Tensor) -> None:
    """Keep only some images of the batch in the history that a scheduler holds.

    Its history is everything that has the shape of the latents (ets, model_outputs, derivatives, cur_sample); tables of
    noise levels have another shape.

    Args:
        scheduler: A scheduler of diffusers, between two steps.
        shape: Shape of the latents.
        places: (k,) places in the batch to keep; a place may be repeated.

    Raises:
        UsageError: If a place is repeated and the scheduler's noise cannot branch.
    """
    _slice_brownian_noise(scheduler, places)
    for name, value in vars(scheduler).items():
        vars(scheduler)[name] = _slice_history(value, shape, places)


def _slice_history(value: Any, shape: torch.Size, places: Tensor) -> Any:
    if isinstance(value, torch.Tensor):
        return value[places.to(value.device)] if value.shape == shape else value
    if type(value) in {list, tuple}:
        return type(value)(_slice_history(item, shape, places) for item in value)
    return value


def _slice_brownian_noise(scheduler: Any, places: Tensor) -> None:
    """Let a sampler of noise for the whole batch (DPMSolverSDE's Brownian tree) go on for a part of it.

    Raises:
        UsageError: If a place is repeated, because its copies would draw the same noise.
    """
    draw = getattr(scheduler, "noise_sampler", None)
    if draw is None:
        return
    if len(set(places.tolist())) < len(places):
        raise UsageError(
            f"the Brownian noise of {type(scheduler).__name__} cannot branch; expected a scheduler that takes "
            "generators, such as DPMSolverMultistep with algorithm_type sde-dpmsolver++ or EulerAncestralDiscrete"
        )
    scheduler.noise_sampler = lambda *times: draw(*times)[places]


def fork_generators(generators: Sequence[torch.Generator], kept: Sequence[int], step: int) -> list[torch.Generator]:
    """The generators of the kept places: the first copy goes on with its own, each further one gets a new one.

    The seed of a new one follows from its ancestor's seed, the step and the number of the copy.
    """
    copies = dict.fromkeys(kept, 0)
    result = []
    for place in kept:
        generator = generators[place]
        if copies[place]:
            origin = f"{generator.initial_seed()} {step} {copies[place]}"
            seed = int.from_bytes(hashlib.sha256(origin.encode()).digest()[:8]) >> 1
            generator = torch.Generator(generator.device).manual_seed(seed)
        copies[place] += 1
        result.append(generator)
    return result


def other_scheduler(pipe: Any, name: str) -> Any:
    """Another scheduler with the configuration of the pipeline's own, changed as A1111's name says.

    Raises:
        UsageError: If the model cannot take it, or it needs a package that is not installed.
    """
    kinds = getattr(pipe.scheduler, "compatibles", ())
    compatible = {kind.__name__: kind for kind in kinds}
    sampler = None if name in compatible else find_sampler(name)
    wanted = name if sampler is None else sampler[1].scheduler
    kind = compatible.get(wanted, compatible.get(f"{wanted}Scheduler"))
    if kind is None:
        listed = ", ".join(sorted(kind.__name__.removesuffix("Scheduler") for kind in kinds)) or "its own"
        raise UsageError(
            f"no scheduler {name!r} for this model; expected one of {listed}, or a name of AUTOMATIC1111 such as Euler "
            "a or DPM++ 2M Karras"
        )
    try:
        scheduler = kind.from_config(pipe.scheduler.config, **(sampler[1].config if sampler else {}))
        if sampler and sampler[1].config:
            scheduler.sampler_name = sampler[0]
        return scheduler
    except ImportError as error:
        backends = ", ".join(name for name in getattr(kind, "_backends", ()) if name != "torch") or "another package"
        raise UsageError(
            f"{kind.__name__} needs {backends}, which is not installed; install it or take another scheduler"
        ) from error
