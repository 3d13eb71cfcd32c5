"""The safety checker on tensors flags what the pipeline's own does, and sees the pixels of the original extractor."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.doubles import SeededPipe
from support.pictures import KINDS, picture
from support.tiny import build_sd_pipeline
from torchvision.transforms import functional as torchvision
from transformers import CLIPImageProcessor, CLIPImageProcessorPil

from sp_rerank.diffusion.safety import checker_of, prepared
from sp_rerank.diffusion.sampler import Sampler


@settings(max_examples=40, database=None, deadline=None)
@given(
    kind=st.sampled_from(KINDS), width=st.integers(20, 200), height=st.integers(20, 200),
    edges=st.sampled_from([(30, 30), (64, 48), (224, 224)]),
)  # fmt: skip
def test_it_sees_what_the_original_extractor_gives(kind, width, height, edges):
    short, crop = edges
    extractor = CLIPImageProcessorPil(size={"shortest_edge": short}, crop_size={"height": crop, "width": crop})
    image = picture(kind, width, height)
    theirs = extractor([image], return_tensors="pt")["pixel_values"]
    if height > 2 * width:  # where Pillow 13 takes the vertical pass first
        return
    assert torch.allclose(prepared(torchvision.to_tensor(image)[None], extractor), theirs, rtol=0, atol=2e-6)


def noisy(count=24):
    """Latent images as the pipeline has them before its check, in -1..1 and a little beyond."""
    noise = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.1, 1.2, count)[:, None, None, None]
    return torch.randn(count, 3, 48, 40, generator=noise) * scale


def test_it_flags_what_the_pipelines_own_check_flags():
    pipe = build_sd_pipeline(safety_threshold=0.0)
    pipe.feature_extractor = CLIPImageProcessorPil(**sizes())
    images, flagged = noisy(), set()
    check = checker_of(pipe)
    for threshold in (-1.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0):
        torch.nn.init.constant_(pipe.safety_checker.concept_embeds_weights, threshold)
        theirs, their_flags = pipe.run_safety_checker(images.clone(), pipe.device, torch.float32)
        ours, our_flags = check(images.clone(), pipe.device, torch.float32)
        assert our_flags == their_flags
        assert torch.equal(ours, theirs)
        flagged |= set(their_flags)
    assert flagged == {False, True}


def sizes():
    return {"size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}}


def test_the_sampler_takes_it(monkeypatch):
    pipe = build_sd_pipeline(safety_threshold=-2.0)
    monkeypatch.setattr(type(pipe.feature_extractor), "__call__", None)  # the pipeline's own check would call it
    (batch,) = Sampler(pipe, "a lemon", batch_size=2, guidance_scale=1.0, num_inference_steps=1).batches({0: 1, 1: 2})
    assert batch.flagged == (True, True)
    assert batch.images.abs().sum() == 0


@pytest.mark.parametrize(
    "settings", [{"do_normalize": False}, {"do_center_crop": False}, {"resample": 2}, {"size": {"shortest_edge": 20}}]
)
def test_another_extractor_keeps_the_pipelines_own_check(settings):
    pipe = build_sd_pipeline(safety_threshold=0.0)
    assert checker_of(pipe) is not None
    pipe.feature_extractor = CLIPImageProcessor(**{**sizes(), **settings})
    assert checker_of(pipe) is None


def test_a_pipeline_without_a_checker_has_none():
    assert checker_of(build_sd_pipeline()) is None
    assert checker_of(SeededPipe()) is None
