"""Sampler: seeds, batches, memory, and what a stock pipeline gives for the same seed."""

from __future__ import annotations

import pytest
import torch
from support.doubles import SeededPipe
from support.tiny import build_sdxl

from sp_rerank.diffusion.sampler import Sampler
from sp_rerank.errors import TryAgainError

PROMPT = "a lemon on the beach"


def sample(pipe, n: int, batch_size: int, **arguments):
    arguments = {"guidance_scale": 3.0, "num_inference_steps": 4, **arguments}
    sampler = Sampler(pipe, arguments.pop("prompt", PROMPT), batch_size=batch_size, **arguments)
    return list(sampler.batches({i: 100 + i for i in range(n)}))


def stock_image(pipe, negative_prompt: str | None) -> torch.Tensor:
    """What the pipeline itself makes of the first seed."""
    return pipe(
        PROMPT,
        negative_prompt=negative_prompt,
        guidance_scale=3.0,
        num_inference_steps=4,
        generator=torch.Generator("cpu").manual_seed(100),
        output_type="pt",
    ).images


def test_an_image_is_that_of_the_stock_pipeline(mini):
    (ours,) = sample(mini, 1, 1, negative_prompt="a cat")
    assert torch.equal(ours.images, stock_image(mini, "a cat"))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers' Euler scheduler
@pytest.mark.parametrize("negative_prompt", [None, "a cat"])
def test_an_image_of_another_family_is_that_of_its_stock_pipeline(negative_prompt):
    pipe = build_sdxl()
    (ours,) = sample(pipe, 1, 1, negative_prompt=negative_prompt)
    assert torch.equal(ours.images, stock_image(pipe, negative_prompt))


def test_the_same_batch_is_bitwise_the_same_and_singles_are_close(mini):
    (first,), (second,) = sample(mini, 4, 4), sample(mini, 4, 4)
    assert torch.equal(first.images, second.images)
    singles = torch.cat([batch.images for batch in sample(mini, 4, 1)])
    difference = (singles - first.images).abs().max().item()
    print(f"batch of 4 against singles: largest difference {difference:.1e}")
    assert difference < 1e-3


def test_half_a_run_makes_the_batches_of_the_whole(mini):
    whole = sample(mini, 6, 2)
    sampler = Sampler(mini, PROMPT, batch_size=2, guidance_scale=3.0, num_inference_steps=4)
    (resumed,) = sampler.batches({2: 102, 3: 103})
    assert resumed.indices == whole[1].indices == (2, 3)
    assert torch.equal(resumed.images, whole[1].images)


def test_evaluations_are_counted(mini):
    batches = sample(mini, 3, 2)
    assert [batch.nfe for batch in batches] == [5, 5]  # PNDM asks the UNet once more than its steps
    assert all(not any(batch.flagged) for batch in batches)


def test_the_text_is_encoded_once(mini):
    calls = []
    handle = mini.text_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    sample(mini, 6, 2)
    handle.remove()
    assert len(calls) == 2  # the prompt and the empty negative prompt, for three batches


def test_memory_runs_out_above_three_images():
    def spoil(seeds, images):
        if len(seeds) > 3:
            raise torch.OutOfMemoryError("planted")

    pipe = SeededPipe(spoil)
    batches = sample(pipe, 100, 16)
    made = [index for batch in batches for index in batch.indices]
    print(f"out of memory above 3: {len(set(made))} of 100 done, {len(made) - len(set(made))} twice")
    assert made == list(range(100))
    assert {len(batch.indices) for batch in batches} == {2}
    assert torch.equal(batches[5].images, sample(SeededPipe(), 100, 2)[5].images)


def test_memory_for_not_even_one_image():
    def spoil(seeds, images):
        raise torch.OutOfMemoryError("planted")

    with pytest.raises(TryAgainError, match="dtype float16"):
        sample(SeededPipe(spoil), 4, 4)
