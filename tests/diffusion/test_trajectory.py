"""Trajectories: survivors of cuts against the uncut run, x_0 against the truth, and loops that always end."""

from __future__ import annotations

import signal
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderTiny
from support.doubles import SeededPipe
from support.loops import FAMILIES, PROMPT, build_sd, family, sampler_of, seeds_of, waiting_loops

from sp_rerank.diffusion.previews import Previews, find_decoder, unscaled
from sp_rerank.diffusion.schedulers import fork_generators, predict_x0, slice_state
from sp_rerank.diffusion.trajectory import open_trajectories
from sp_rerank.errors import HubUnavailableError, UsageError

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),  # NumPy 2 in diffusers' schedulers
    pytest.mark.filterwarnings("ignore:Should have ta:UserWarning"),  # torchsde, of the last digit of a time
]

COMPATIBLE = {
    "DDIM": {"eta": 0.5},
    "DDPM": {},
    "DEISMultistep": {},
    "DPMSolverMultistep": {},
    "DPMSolverSDE": {"noise_sampler_seed": 7},
    "DPMSolverSinglestep": {"lower_order_final": True},
    "EDMEuler": {},
    "EulerAncestralDiscrete": {},
    "EulerDiscrete": {},
    "HeunDiscrete": {},
    "KDPM2AncestralDiscrete": {},
    "KDPM2Discrete": {},
    "LMSDiscrete": {},
    "PNDM": {"skip_prk_steps": True},
    "UniPCMultistep": {},
}
OTHERS = {
    "PNDM with Runge-Kutta": ("PNDM", {"skip_prk_steps": False}),
    "SDE-DPM-Solver++": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM-Solver++ of third order": ("DPMSolverMultistep", {"solver_order": 3}),
    "Euler with Karras noise levels": ("EulerDiscrete", {"use_karras_sigmas": True}),
    "v prediction": ("DPMSolverMultistep", {"prediction_type": "v_prediction"}),
    "LCM": ("LCM", {}),
    "SASolver": ("SASolver", {}),
    "TCD": ("TCD", {}),
}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return build_sd()


@pytest.fixture(autouse=True, scope="module")
def no_loop_is_left():
    yield
    assert not waiting_loops()


def schedule(pipe: Any, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Give a pipeline a scheduler; what remains of the settings belongs to its call."""
    if name == "DPMSolverSDE":
        pytest.importorskip("torchsde")
    kind = getattr(diffusers, f"{name}Scheduler")
    call = {key: value for key, value in settings.items() if key == "eta"}
    config = {key: settings[key] for key in settings.keys() - call.keys()}
    own = {"beta_schedule": "scaled_linear", "steps_offset": 1, **config}
    accepted = kind._get_init_keys(kind)
    pipe.scheduler = kind(**{key: value for key, value in own.items() if key in accepted})
    return call


def uncut(sampler: Any, n: int) -> torch.Tensor:
    return torch.cat([batch.images for batch in sampler.batches(seeds_of(n))])


def test_the_list_holds_every_compatible_scheduler(pipe):
    shipped = {kind.__name__.removesuffix("Scheduler") for kind in pipe.scheduler.compatibles}
    assert shipped == set(COMPATIBLE)


@pytest.mark.parametrize("name", [*COMPATIBLE, *OTHERS])
def test_survivors_of_two_cuts_are_bitwise_those_of_the_uncut_run(pipe, name):
    call = schedule(pipe, *OTHERS.get(name, (name, COMPATIBLE.get(name, {}))))
    sampler = sampler_of(pipe, num_inference_steps=5, **call)
    (whole,) = sampler.batches(seeds_of(3))
    # with two calls a step (9 in all), the cuts fall after the 2nd call and after the 5th: between steps and within one
    with open_trajectories(sampler, seeds_of(3), (1, 3)) as (trajectory,):
        views = [trajectory.advance_to(0)]
        trajectory.prune(0, [0, 2])
        views.append(trajectory.advance_to(1))
        trajectory.prune(1, [1])
        batch = trajectory.finish()
    assert [len(view.x0) for view in views] == [3, 2]
    assert all(view.x0.isfinite().all() for view in views)
    assert sum(part.nfe for part in (*views, batch)) == whole.nfe
    assert views[0].nfe == {5: 1, 6: 1, 9: 2, 14: 3}[whole.nfe]
    assert batch.indices == (2,) and batch.seeds == (102,)
    assert torch.equal(batch.images, whole.images[[2]])


@pytest.mark.parametrize("name", FAMILIES)
def test_survivors_in_every_family_and_their_previews(name):
    pipe, arguments = family(name)
    sampler = sampler_of(pipe, 3, num_inference_steps=4, **arguments)
    whole = uncut(sampler, 6)
    previews = Previews(pipe, height=arguments.get("height"), width=arguments.get("width"))
    with open_trajectories(sampler, seeds_of(6), (1, 3)) as (one, other):
        assert previews.decode(one.advance_to(0).x0).shape == whole[:3].shape
        other.advance_to(0)  # both are under way
        one.prune(0, [0, 2])
        other.prune(0, [1])
        other.advance_to(1)
        one.advance_to(1)
        one.prune(1, [1])
        batches = [one.finish(), other.finish()]
    assert [batch.indices for batch in batches] == [(2,), (4,)]
    assert torch.equal(torch.cat([batch.images for batch in batches]), whole[[2, 4]])


def test_a_smaller_batch_rounds_otherwise_and_no_more(mini):
    sampler = sampler_of(mini, 4, num_inference_steps=4)
    whole = uncut(sampler, 4)
    with open_trajectories(sampler, seeds_of(4), (1, 2)) as (trajectory,):
        trajectory.prune(0, [0, 3])
        batch = trajectory.finish()
    difference = (batch.images - whole[[0, 3]]).abs().max().item()
    print(f"2 of 4 against the batch of 4, the mini model's own kernels: largest difference {difference:.1e}")
    assert difference < 1e-3  # as between a batch of 4 and singles, tests/test_sampling.py


REPORTED = ("DDIM", "EulerDiscrete")
BY_NOISE_LEVEL = ("DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "SASolver")
BY_TABLE = ("PNDM", "TCD")


@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        (name, prediction)
        for name in [*REPORTED, *BY_NOISE_LEVEL, *BY_TABLE]
        for prediction in ("epsilon", "sample", "v_prediction")
        if (name, prediction) != ("PNDM", "sample")  # which it does not know
    ],
)
def test_x0_is_what_a_perfect_model_predicts(name, prediction, place):
    settings = {"lower_order_final": True} if name == "DPMSolverSinglestep" else {}
    kind = getattr(diffusers, f"{name}Scheduler")
    settings |= {"clip_sample": False} if name == "DDIM" else {}
    scheduler = kind(beta_schedule="scaled_linear", prediction_type=prediction, **settings)
    scheduler.set_timesteps(8)
    timestep = scheduler.timesteps[place]
    truth, noise = torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    noisy = scheduler.add_noise(truth, noise, timestep[None])
    alpha = scheduler.alphas_cumprod[int(timestep.round())] ** 0.5
    output = {"epsilon": noise, "sample": truth, "v_prediction": alpha * noise - (1 - alpha**2) ** 0.5 * truth}
    stepped = scheduler.step(output[prediction], timestep, noisy)
    x0 = predict_x0(scheduler, stepped, output[prediction], timestep, noisy)
    assert x0.dtype == noisy.dtype
    torch.testing.assert_close(x0, truth, atol=5e-3, rtol=0)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"])
def test_x0_of_a_flow(name):
    scheduler = getattr(diffusers, f"{name}Scheduler")(shift=3.0)
    scheduler.set_timesteps(8)
    timestep = scheduler.timesteps[3]
    truth, noise = torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    noisy = scheduler.scale_noise(truth, timestep[None], noise)
    velocity = noise - truth
    x0 = predict_x0(scheduler, scheduler.step(velocity, timestep, noisy), velocity, timestep, noisy)
    torch.testing.assert_close(x0, truth, atol=1e-5, rtol=0)


def test_a_scheduler_of_unknown_noise_level(pipe):
    schedule(pipe, "IPNDM", {})
    refused = pytest.raises(UsageError, match=r"IPNDMScheduler .*DPMSolverMultistep.*screening")
    with open_trajectories(sampler_of(pipe), seeds_of(3), (2,)) as (trajectory,), refused:
        trajectory.advance_to(0)


def test_a_repeated_particle_goes_on_with_noise_of_its_own(pipe):
    schedule(pipe, "EulerAncestralDiscrete", {})
    sampler = sampler_of(pipe)
    whole = uncut(sampler, 3)
    images = []
    for _ in range(2):
        with open_trajectories(sampler, seeds_of(3), (2, 4)) as (trajectory,):
            assert trajectory.advance_to(0).stochastic
            trajectory.resample(0, [1, 1, 1])
            batch = trajectory.finish()
            assert batch.indices == (0, 1, 2)
            images.append(batch.images)
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0][0], whole[1])
    assert len({image.sum().item() for image in images[0]}) == 3


def test_generators_go_on_in_order():
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    after = fork_generators(generators, [2, 0, 2, 2], step=3)
    assert after[0] is generators[2] and after[1] is generators[0]
    assert len({generator.initial_seed() for generator in after}) == 4
    again = fork_generators(generators, [2, 0, 2, 2], step=3)
    assert [noise.initial_seed() for noise in after] == [noise.initial_seed() for noise in again]


def test_brownian_noise_is_cut_and_cannot_branch():
    scheduler = SimpleNamespace(noise_sampler=lambda start, end: torch.arange(4.0) + start)
    slice_state(scheduler, torch.Size((4, 1)), torch.tensor([0, 2, 3]))
    slice_state(scheduler, torch.Size((3, 1)), torch.tensor([1, 2]))
    assert scheduler.noise_sampler(10.0, 0.0).tolist() == [12.0, 13.0]
    with pytest.raises(UsageError, match="EulerAncestralDiscrete"):
        slice_state(scheduler, torch.Size((2, 1)), torch.tensor([0, 0]))


def test_the_pipeline_is_left_as_it_was(pipe):
    schedule(pipe, "PNDM", {})
    before, state, config = dict(vars(pipe)), deepcopy(vars(pipe.scheduler)), dict(pipe.config)

    def fail(*_: Any) -> dict[str, Any]:
        raise RuntimeError("planted")

    with open_trajectories(sampler_of(pipe), seeds_of(6), (2,)) as trajectories:
        for trajectory in trajectories:
            trajectory.advance_to(0)
    with (
        pytest.raises(RuntimeError, match="planted"),
        open_trajectories(sampler_of(pipe, callback_on_step_end=fail), seeds_of(3), (2,)) as (trajectory,),
    ):
        trajectory.advance_to(0)
    assert vars(pipe) == {**before, "_interrupt": False}
    assert dict(pipe.config) == config
    assert vars(pipe.scheduler).keys() == state.keys() and pipe.scheduler.ets == state["ets"]


def test_a_users_callback_goes_along(pipe):
    schedule(pipe, "PNDM", {})
    seen = []

    def halve(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, sorted(tensors), len(tensors["latents"])))
        return {"latents": tensors["latents"] / 2}

    sampler = sampler_of(
        pipe, callback_on_step_end=halve, callback_on_step_end_tensor_inputs=["prompt_embeds", "latents"]
    )
    whole = uncut(sampler, 3)
    stock, seen[:] = list(seen), []
    with open_trajectories(sampler, seeds_of(3), (3,)) as (trajectory,):
        trajectory.prune(0, [1])
        assert torch.equal(trajectory.finish().images, whole[[1]])
    assert [step for step, *_ in seen] == [step for step, *_ in stock]
    assert [names for _, names, _ in seen] == [names for _, names, _ in stock]
    assert seen[0][2] == 3 and seen[-1][2] == 1


def test_running_out_of_memory_reaches_the_caller(pipe):
    schedule(pipe, "PNDM", {})
    calls = []

    def spoil(*_: Any) -> dict[str, Any]:
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("planted")
        return {}

    sampler = sampler_of(pipe, callback_on_step_end=spoil)
    with pytest.raises(torch.OutOfMemoryError), open_trajectories(sampler, seeds_of(9), (2,)) as trajectories:
        for trajectory in trajectories:
            trajectory.advance_to(0)
    assert len(calls) == 4 and not waiting_loops()


def test_ctrl_c_in_mid_step_ends_all(pipe):
    schedule(pipe, "PNDM", {})
    steps = []

    def interrupt(_: Any, step: int, *__: Any) -> dict[str, Any]:
        steps.append(step)
        if len(steps) == 4:
            signal.raise_signal(signal.SIGINT)
        return {}

    sampler = sampler_of(pipe, callback_on_step_end=interrupt, num_inference_steps=60)
    with pytest.raises(KeyboardInterrupt), open_trajectories(sampler, seeds_of(6), (2, 59)) as (one, other):
        one.advance_to(0)
        other.advance_to(1)
    assert not waiting_loops() and len(steps) == 4


def test_a_batch_that_is_pruned_to_nothing_ends(pipe):
    schedule(pipe, "PNDM", {})
    with open_trajectories(sampler_of(pipe), seeds_of(3), (2,)) as (trajectory,):
        trajectory.advance_to(0)
        trajectory.prune(0, [])
        assert trajectory.indices == () and not waiting_loops()


def test_the_callers_gradient_mode_stays(pipe):
    schedule(pipe, "PNDM", {})
    with open_trajectories(sampler_of(pipe), seeds_of(6), (2,)) as (one, other):
        assert torch.is_grad_enabled()
        assert not one.advance_to(0).x0.requires_grad and torch.is_grad_enabled()
        other.advance_to(0)
        assert not one.finish().images.requires_grad and torch.is_grad_enabled()
    assert torch.is_grad_enabled(), "one batch was ended in mid-loop"


def test_pipelines_that_cannot_be_watched(pipe):
    with pytest.raises(UsageError, match=r"SeededPipe has no callback_on_step_end.*StableDiffusionPipeline"):
        open_trajectories(sampler_of(SeededPipe()), seeds_of(3), (2,)).__enter__()
    with pytest.raises(UsageError, match="expected the pipeline or one of its methods"):
        sampler = sampler_of(pipe)
        sampler.call = lambda **arguments: pipe(**arguments)
        with open_trajectories(sampler, seeds_of(3), (2,)) as (trajectory,):
            trajectory.advance_to(0)

    def interrupt(pipe: Any, *_: Any) -> dict[str, Any]:
        pipe._interrupt = True
        return {}

    sampler, refused = (
        sampler_of(pipe, callback_on_step_end=interrupt),
        pytest.raises(UsageError, match="before step 2"),
    )
    with open_trajectories(sampler, seeds_of(3), (2,)) as (trajectory,), refused:
        trajectory.advance_to(0)


def test_a_method_of_the_pipeline_may_be_called(pipe):
    schedule(pipe, "PNDM", {})
    sampler = sampler_of(pipe)
    whole = uncut(sampler, 3)
    sampler.call = pipe.__call__
    with open_trajectories(sampler, seeds_of(3), (2,)) as (trajectory,):
        assert torch.equal(trajectory.finish().images, whole)


def test_steps_by_default(pipe):
    assert sampler_of(pipe, num_inference_steps=7).steps == 7
    sampler = sampler_of(pipe)
    del sampler._arguments["num_inference_steps"]
    assert sampler.steps == 50
    assert sampler_of(pipe, timesteps=[900, 500, 100]).steps == 3


@pytest.mark.parametrize("name", FAMILIES)
def test_finished_latents_are_decoded_as_the_pipeline_does(name):
    pipe, arguments = family(name)
    call = {**arguments, "prompt": PROMPT, "num_inference_steps": 2}
    latents, images = (
        pipe(**call, generator=torch.Generator().manual_seed(0), output_type=kind).images for kind in ("latent", "pt")
    )
    previews = Previews(pipe, height=arguments.get("height"), width=arguments.get("width"))
    torch.testing.assert_close(previews.decode(latents), images, atol=1e-6, rtol=0)


def test_a_small_decoder_takes_the_place_of_the_autoencoder(pipe, tmp_path, monkeypatch):
    torch.manual_seed(0)
    small = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=4,
    ).eval()  # fmt: skip
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_decoder("another") is None
    assert find_decoder("sd-v1.4") is None
    cached, commit = tmp_path / "models--madebyollin--taesd", "a" * 40
    small.save_pretrained(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    assert find_decoder("sd-v1.4") == f"madebyollin/taesd@{commit}"
    images = Previews(pipe, find_decoder("sd-v1.4")).decode(torch.randn(11, 4, 4, 4))
    assert images.shape == (11, 3, 8, 8) and images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    with pytest.raises(HubUnavailableError, match="began with the small decoder"):
        Previews(pipe, f"madebyollin/taesd@{'b' * 40}")
    with pytest.raises(UsageError, match="no small decoder 'another/decoder'"):
        Previews(pipe, "another/decoder")


def test_latents_that_are_not_finite_make_images_that_are_not(pipe):
    latents = torch.zeros(2, 4, 4, 4)
    latents[1] = torch.nan
    finite = Previews(pipe).decode(latents).flatten(1).isfinite().all(dim=1)
    assert finite.tolist() == [True, False]


def test_latents_with_mean_and_spread():
    config = SimpleNamespace(latents_mean=[1.0, 0.0], latents_std=[2.0, 4.0], scaling_factor=2.0)
    assert unscaled(torch.ones(1, 2, 1, 1), config).flatten().tolist() == [2.0, 2.0]
