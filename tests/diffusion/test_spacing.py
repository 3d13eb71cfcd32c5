"""Time steps of drafts: what the denoiser is asked for, and who takes none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from support.blurred import BlurredPipe
from support.loops import FAMILIES, build_sd, sampler_of
from support.pipelines import build

from sp_rerank.diffusion.call_arguments import parameters_of
from sp_rerank.diffusion.sampler import Sampler
from sp_rerank.diffusion.spacing import first_time, takes_time_steps, time_steps
from sp_rerank.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and transformers


def asked_times(sampler: Sampler, denoiser: torch.nn.Module) -> list[float]:
    """The times that a batch of one image asks its denoiser for."""
    times: list[float] = []

    def note(_: Any, args: tuple[Any, ...], more: dict[str, Any]) -> None:
        times.append(float(torch.as_tensor(more["timestep"] if "timestep" in more else args[1]).flatten()[0]))

    hook = denoiser.register_forward_pre_hook(note, with_kwargs=True)
    next(sampler.batches({0: 5}))
    hook.remove()
    return times


def test_a_draft_begins_where_the_run_begins_and_an_old_one_where_its_scheduler_does():
    pipe = build_sd()
    sampler = sampler_of(pipe)  # PNDM, 6 steps, leading
    first = asked_times(sampler, pipe.unet)[0]
    assert first == first_time(pipe.scheduler, {}, 6) == 831
    assert asked_times(sampler.for_drafts(4, 0.8), pipe.unet) == [831, 660, 477, 274]
    assert asked_times(sampler.for_drafts(4, 1.0), pipe.unet) == [831, 623, 416, 208]
    leading = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    leading.set_timesteps(4)
    assert asked_times(sampler.for_drafts(4), pipe.unet) == leading.timesteps.tolist() != [831, 660, 477, 274]
    assert asked_times(sampler, pipe.unet)[0] == first, "the sampler itself is as it was"


def test_a_draft_of_a_run_with_time_steps_of_its_own_begins_with_them():
    pipe = build_sd()
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    sampler = sampler_of(pipe, timesteps=[900, 600, 500, 300, 200, 100])
    assert asked_times(sampler.for_drafts(3, 1.0), pipe.unet) == [900, 600, 300]
    assert len(asked_times(sampler.for_drafts(3), pipe.unet)) == 3


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_flow_takes_noise_levels(name):
    make, arguments = FAMILIES[name]
    pipe = make()
    sampler = sampler_of(pipe, **arguments)
    full, times = asked_times(sampler, pipe.transformer), asked_times(sampler.for_drafts(4, 0.8), pipe.transformer)
    scale = full[0]
    assert times == pytest.approx([scale * (1 - i / 4) ** 0.8 for i in range(4)], rel=0.15)
    assert times[0] == pytest.approx(scale, rel=1e-6)
    assert len(asked_times(sampler.for_drafts(4), pipe.transformer)) == 4


def test_noise_levels_of_another_kind_do_not_hinder():
    pipe = build_sd()
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    sampler = sampler_of(pipe)
    first = round(first_time(pipe.scheduler, {}, 6))
    assert asked_times(sampler.for_drafts(3, 1.0), pipe.unet) == [first, round(first * 2 / 3), round(first / 3)]


@pytest.mark.parametrize(
    "name", ["Kandinsky3Pipeline", "Ideogram4Pipeline", "PRXPipeline", "WuerstchenCombinedPipeline"]
)
def test_who_takes_none_says_so_in_one_line(name):
    pipe, arguments = build(name)
    assert not takes_time_steps(pipe, parameters_of(pipe))
    given = {"guidance_scale": 0.0, "num_inference_steps": 6, **arguments}
    sampler = Sampler(pipe, "a lemon", batch_size=1, **given)
    with pytest.raises(UsageError, match=r"takes no (timesteps|sigmas) here, .* without spacing") as caught:
        sampler.for_drafts(3, 0.8)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_what_a_scheduler_makes_of_the_steps_is_checked():
    takes = {"timesteps": None}
    solver = DPMSolverMultistepScheduler(use_karras_sigmas=True)
    with pytest.raises(UsageError, match=r"cannot take the time steps .*karras"):
        time_steps(solver, takes, first=900, steps=3, exponent=0.8)
    with pytest.raises(UsageError, match="fall on one time; expected fewer steps"):
        time_steps(DPMSolverMultistepScheduler(), takes, first=5, steps=9, exponent=0.8)
    stubborn = SimpleNamespace(timesteps=[1, 2], set_timesteps=lambda timesteps: None)
    with pytest.raises(UsageError, match=r"makes \[1, 2\] of the time steps"):
        time_steps(stubborn, takes, first=900, steps=2, exponent=0.8)
    assert not takes_time_steps(BlurredPipe(), parameters_of(BlurredPipe()))
    assert takes_time_steps(build_sd(), parameters_of(build_sd()))
