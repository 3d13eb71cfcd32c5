"""An image made larger: by the very weights, in their precision, and refused in one line where a family cannot."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from support.doubles import SeededPipe
from support.pipelines import build
from support.runs import run_config
from support.tiny import build_sd_pipeline

from sp_rerank.diffusion.enlarging import enlarge, image_to_image, size_of
from sp_rerank.errors import NothingUsableError, OptionError, TryAgainError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers' schedulers under NumPy 2
IMAGE = Image.new("RGB", (16, 16), (200, 180, 40))
CONFIG = run_config(4, steps=4, guidance_scale=2.0, negative_prompt="blur", pipe_kwargs={"eta": 0.5, "height": 8})


def larger(pipe, **changes):
    values = {"seed": 3, "steps": 4, "scale": 2.0, "strength": 0.5, **changes}
    return enlarge(image_to_image(pipe), IMAGE, CONFIG, **values)


@pytest.mark.parametrize(
    "name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"]
)
def test_a_family_makes_it_larger_with_its_own_weights(name):
    pipe, _ = build(name)
    weights = {part: module for part, module in pipe.components.items() if isinstance(module, torch.nn.Module)}
    made_by = image_to_image(pipe)
    assert weights and all(getattr(made_by, part) is module for part, module in weights.items())
    config = run_config(4, steps=4, guidance_scale=2.0)
    image = enlarge(made_by, IMAGE.resize((32, 32)), config, seed=1, steps=4, scale=2, strength=0.5)
    assert image.size == (64, 64)


def test_the_precision_of_the_model_stays():
    pipe = build_sd_pipeline().to(torch.bfloat16)
    larger(pipe)
    assert {parameter.dtype for parameter in pipe.unet.parameters()} == {torch.bfloat16}


def test_seed_and_strength_decide_the_pixels():
    pipe = build_sd_pipeline()
    first = larger(pipe)
    assert first.size == (32, 32)
    assert larger(pipe).tobytes() == first.tobytes()
    assert larger(pipe, seed=4).tobytes() != first.tobytes()
    assert larger(pipe, strength=1.0).tobytes() != first.tobytes()


@pytest.mark.parametrize("pipe", [SeededPipe(), *(build(name)[0] for name in ("PixArtSigmaPipeline",))])
def test_a_family_without_image_to_image_is_refused(pipe):
    with pytest.raises(UsageError, match=r"^\w+ has no image-to-image pipeline in diffusers, .*Flux.*$"):
        image_to_image(pipe)


def test_a_strength_that_leaves_no_step_is_refused():
    with pytest.raises(OptionError, match=r"strength is 0\.2; expected at least 0\.25, for one of 4 steps"):
        larger(build_sd_pipeline(), strength=0.2)


def test_what_the_safety_checker_replaced_is_no_image():
    with pytest.raises(NothingUsableError, match="safety checker replaced the larger image"):
        larger(build_sd_pipeline(safety_threshold=-2.0))


def test_out_of_memory_names_the_size(monkeypatch):
    pipe = build_sd_pipeline()
    monkeypatch.setattr(pipe.vae, "encode", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("planted")))
    with pytest.raises(TryAgainError, match="does not suffice for 32 x 32 pixels"):
        larger(pipe)


@pytest.mark.parametrize(("scale", "size"), [(1, (16, 16)), (1.3, (20, 20)), (2, (32, 32))])
def test_sides_are_multiples_that_the_pipeline_takes(scale, size):
    pipe = image_to_image(build_sd_pipeline())
    step = pipe.image_processor.config.vae_scale_factor
    assert size_of(pipe, (16, 16), scale) == tuple(round(side / step) * step for side in size)
