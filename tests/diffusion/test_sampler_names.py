"""A1111's names of samplers: each a scheduler of diffusers as it says, told apart in run.json and in PNG text."""

from __future__ import annotations

import diffusers
import pytest
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, StableDiffusionPipeline
from support.doubles import SeededPipe
from support.tiny import build_sd_pipeline

from sp_rerank import generate, load_scorer
from sp_rerank.config.samplers import A1111_SAMPLERS, a1111_name, find_sampler
from sp_rerank.diffusion import loading
from sp_rerank.diffusion.schedulers import other_scheduler
from sp_rerank.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # NumPy 2 in diffusers' schedulers


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return build_sd_pipeline()


@pytest.mark.parametrize("name", A1111_SAMPLERS)
def test_a_name_is_a_scheduler_of_stable_diffusion(pipe, name):
    made = other_scheduler(pipe, name)
    sampler = A1111_SAMPLERS[name]
    assert isinstance(made, getattr(diffusers, f"{sampler.scheduler}Scheduler"))
    assert {key: made.config[key] for key in sampler.config} == sampler.config
    made.set_timesteps(5)
    assert made.config.beta_schedule == pipe.scheduler.config.beta_schedule  # the model's own noise


def test_names_of_both_kinds_in_any_case(pipe):
    assert type(other_scheduler(pipe, "euler A")) is EulerAncestralDiscreteScheduler
    assert type(other_scheduler(pipe, "EulerAncestralDiscreteScheduler")) is EulerAncestralDiscreteScheduler
    assert type(other_scheduler(pipe, "EulerAncestralDiscrete")) is EulerAncestralDiscreteScheduler
    assert find_sampler("Restart") is None
    with pytest.raises(UsageError, match=r"no scheduler 'Restart' .* or a name of AUTOMATIC1111 such as Euler a"):
        other_scheduler(pipe, "Restart")


def test_two_ways_to_set_up_a_class_are_two_runs(pipe):
    other = SeededPipe()
    names = []
    for name in ("DPM++ 2M", "dpm++ 2m karras", "DPM++ 2M SDE Karras"):
        other.scheduler = other_scheduler(pipe, name)
        assert isinstance(other.scheduler, DPMSolverMultistepScheduler)
        names.append(loading.scheduler_name(other))  # pyright: ignore[reportArgumentType]
    assert names == ["DPMSolverMultistepScheduler", "DPM++ 2M Karras", "DPM++ 2M SDE Karras"]


def test_a_png_names_the_sampler_as_a1111_does(tmp_path, pipe):
    from PIL import Image

    for name, said in (("DPM++ 2M Karras", "DPM++ 2M Karras"), ("Euler a", "Euler a"), ("PNDMScheduler", "PLMS")):
        other = SeededPipe()
        other.scheduler = other_scheduler(pipe, name)
        folder = tmp_path / said
        result = generate("a lemon", pipe=other, scorer=load_scorer("brightness"), n=1, out=folder)
        with Image.open(folder / "images" / "00000.png") as image:
            assert f"Sampler: {said}, " in image.info["parameters"]
        assert result.folder == folder
    assert a1111_name("SomethingScheduler") == "Something"
