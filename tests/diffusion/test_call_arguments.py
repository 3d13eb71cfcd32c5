"""What a pipeline takes is passed on, what it does not take is refused in one line, and so is a range of the steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, LCMScheduler, PNDMScheduler
from support.doubles import SeededPipe
from support.pipelines import build
from support.tiny import build_sd_pipeline

from sp_rerank import generate
from sp_rerank.diffusion.sampler import Sampler
from sp_rerank.diffusion.schedulers import check_steps
from sp_rerank.errors import UsageError
from sp_rerank.scorers.brightness import BrightnessScorer


def sampler_of(pipe: Any, **arguments: Any) -> Sampler:
    return Sampler(pipe, "a lemon", batch_size=2, **{"num_inference_steps": 2, **arguments})


def images_of(pipe: Any, **arguments: Any) -> torch.Tensor:
    return next(sampler_of(pipe, **arguments).batches({0: 5, 1: 6})).images


def test_an_argument_of_the_pipeline_alone_is_passed_on():
    pipe, arguments = build("QwenImagePipeline")
    assert arguments["true_cfg_scale"] == 2.0
    weak, strong = (
        images_of(pipe, **{**arguments, "max_sequence_length": 512, "true_cfg_scale": scale}) for scale in (1.0, 4.0)
    )
    assert not torch.equal(weak, strong)


def test_an_argument_that_the_pipeline_does_not_take():
    pipe = build_sd_pipeline()
    with pytest.raises(UsageError, match=r"^StableDiffusionPipeline takes no true_cfg_scale; expected .*clip_skip"):
        sampler_of(pipe, true_cfg_scale=4)
    with pytest.raises(UsageError, match=r"takes no guidance_rescal; did you mean guidance_rescale\?$"):
        sampler_of(pipe, guidance_rescal=0.5)


@pytest.mark.parametrize("name", ["generator", "latents", "output_type", "prompt_embeds", "num_images_per_prompt"])
def test_an_argument_that_the_sampler_sets(name):
    with pytest.raises(UsageError, match=f"{name} is set for each batch by the sampler"):
        sampler_of(build_sd_pipeline(), **{name: 1})


@pytest.mark.parametrize("name", ["guidance_scale", "num_inference_steps", "batch_size", "height", "call"])
def test_a_further_argument_that_is_an_option_of_the_run(name):
    options = {"n": 1, "top_k": 1, "steps": 1, "pipe_kwargs": {name: 1}}
    with pytest.raises(UsageError, match=f"pipe_kwargs is '{name}'; expected further arguments"):
        generate("a lemon", pipe=SeededPipe(), scorer=BrightnessScorer(), **options)


class Unguided(SeededPipe):
    """Takes neither a guidance scale nor a negative prompt."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        prompt: str,
        num_inference_steps: int = 5,
        true_cfg_scale: float = 1.0,
        num_images_per_prompt: int = 1,
        generator: Any = None,
        output_type: str = "pt",
        return_dict: bool = True,
    ) -> SimpleNamespace:
        return super().__call__(
            prompt, num_inference_steps, num_images_per_prompt=num_images_per_prompt, generator=generator
        )


def test_what_a_pipeline_lacks_is_left_out_or_refused():
    pipe = Unguided()
    assert images_of(pipe, guidance_scale=0.0, negative_prompt="").shape == (2, 3, 8, 8)
    assert images_of(pipe).shape == (2, 3, 8, 8)
    with pytest.raises(UsageError, match=r"takes no guidance_scale; pass true_cfg_scale"):
        sampler_of(pipe, guidance_scale=4.0)
    with pytest.raises(UsageError, match="takes no negative prompt"):
        sampler_of(pipe, negative_prompt="a cat")


def test_a_pipeline_that_makes_one_image_a_call():
    class Single:
        def __call__(self, prompt: str, num_inference_steps: int, generator: Any, output_type: str) -> None: ...

    with pytest.raises(UsageError, match="Single has no num_images_per_prompt, so no search"):
        sampler_of(Single())


def test_what_a_pipeline_says_of_its_arguments_is_one_line():
    with pytest.raises(UsageError, match=r"StableDiffusionPipeline refuses its arguments: .*divisible by 8") as caught:
        images_of(build_sd_pipeline(), height=12, width=16)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [PNDMScheduler, DDIMScheduler, DDPMScheduler])
def test_steps_that_begin_beyond_the_trained_ones(kind):
    scheduler = kind(steps_offset=1)
    check_steps(scheduler, 999)
    with pytest.raises(UsageError, match=f"{kind.__name__} cannot take 1000 steps: it begins at time 1000"):
        check_steps(scheduler, 1000)
    assert getattr(scheduler, "num_inference_steps", None) is None, "the check leaves it as it was"


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # NumPy 2 in diffusers' schedulers
def test_steps_that_a_scheduler_refuses():
    check_steps(LCMScheduler(), 50)
    with pytest.raises(UsageError, match=r"LCMScheduler cannot take 60 steps: .*50"):
        check_steps(LCMScheduler(), 60)
    check_steps(DPMSolverMultistepScheduler(), 1000)


def test_a_thousand_steps_are_refused_before_the_first():
    with pytest.raises(UsageError, match="PNDMScheduler cannot take 1000 steps"):
        sampler_of(build_sd_pipeline(), num_inference_steps=1000)
