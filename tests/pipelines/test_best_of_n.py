"""What the pipeline chooses: the best of its candidates, by seed, and what it refuses."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessor

from sp_rerank.errors import UsageError
from sp_rerank.pipelines import StableDiffusionBestOfNPipeline
from sp_rerank.scorers.brightness import BrightnessScorer

PROMPT = "a lemon on the beach"
CALL = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "pt"}


def stock_image(stock, seed: int, prompt: str = PROMPT, **arguments) -> torch.Tensor:
    """(3, H, W): what Stable Diffusion itself makes of a seed."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return stock(prompt, generator=generator, **(CALL | arguments)).images[0]


def brightest_first(images: dict[int, torch.Tensor]) -> list[int]:
    return sorted(images, key=lambda seed: -images[seed].mean().item())


class Recorder(BrightnessScorer):
    """Remembers the prompts that it was given and how many of the tensors were alive at each call."""

    def __init__(self):
        self.prompts, self.alive, self._seen = [], [], []

    def score(self, prompt, images):
        self._seen.append(weakref.ref(images))
        self.prompts.append(prompt)
        self.alive.append(sum(reference() is not None for reference in self._seen))
        return super().score(prompt, images)


def test_the_best_are_stock_images_in_order(pipe, stock):
    candidates = {seed: stock_image(stock, seed) for seed in range(100, 106)}
    expected = brightest_first(candidates)[:3]
    out = pipe(PROMPT, num_candidates=6, top_k=3, seed=100, candidate_batch_size=1, **CALL)
    assert out.seeds == expected
    assert out.indices == [seed - 100 for seed in expected]
    assert torch.equal(out.images, torch.stack([candidates[seed] for seed in expected]))
    assert out.scores == [pytest.approx(candidates[seed].mean().item()) for seed in expected]
    assert out.nsfw_content_detected == [False] * 3


def test_all_candidates_come_back_ranked(pipe):
    everything = pipe(PROMPT, num_candidates=7, return_all=True, seed=0, candidate_batch_size=3, **CALL)
    assert sorted(everything.seeds) == list(range(7))
    assert everything.scores == sorted(everything.scores, reverse=True)
    best = pipe(PROMPT, num_candidates=7, top_k=2, seed=0, candidate_batch_size=3, **CALL)
    assert (best.seeds, best.scores) == (everything.seeds[:2], everything.scores[:2])
    assert torch.equal(best.images, everything.images[:2])


def test_another_batch_size_gives_the_same_noise(pipe):
    one, four = (
        pipe(PROMPT, num_candidates=4, return_all=True, seed=0, candidate_batch_size=size, **CALL) for size in (1, 4)
    )
    by_seed = [images.images[np.argsort(images.seeds)] for images in (one, four)]
    difference = (by_seed[0] - by_seed[1]).abs().max().item()
    print(f"batch of 4 against singles: largest difference {difference:.1e}")
    assert difference < 1e-4


@pytest.mark.parametrize("word", ["num_images_per_prompt", "top_k"])
def test_two_words_for_how_many_are_returned(pipe, word):
    assert len(pipe(PROMPT, num_candidates=4, seed=0, **{word: 2}, **CALL).images) == 2


def test_the_default_is_the_single_best(pipe):
    out = pipe(PROMPT, num_candidates=3, seed=0, num_inference_steps=2)
    assert len(out.images) == len(out.scores) == len(out.seeds) == 1
    assert isinstance(out.images[0], Image.Image)


def test_equal_scores_keep_the_order_of_seeds(pipe):
    class Indifferent:
        name = "indifferent"

        def score(self, prompt, images):
            return torch.zeros(len(images))

    pipe.scorer = Indifferent()
    assert pipe(PROMPT, num_candidates=5, top_k=3, seed=7, candidate_batch_size=2, **CALL).seeds == [7, 8, 9]


def test_a_generator_gives_its_seed(pipe):
    by_seed = pipe(PROMPT, num_candidates=3, return_all=True, seed=5, **CALL)
    generator = torch.Generator("cpu").manual_seed(5)
    for _ in range(2):  # it is not advanced
        assert torch.equal(
            pipe(PROMPT, num_candidates=3, return_all=True, generator=generator, **CALL).images, by_seed.images
        )


def test_a_list_of_generators_gives_each_candidate_its_seed(pipe, stock):
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in (50, 3, 20)]
    out = pipe(PROMPT, num_candidates=3, return_all=True, generator=generators, candidate_batch_size=1, **CALL)
    assert out.seeds == brightest_first({seed: stock_image(stock, seed) for seed in (50, 3, 20)})
    assert [(50, 3, 20)[index] for index in out.indices] == out.seeds


def test_without_a_seed_torch_decides(pipe):
    torch.manual_seed(1)
    first, other = (pipe(PROMPT, num_candidates=2, **CALL) for _ in range(2))
    torch.manual_seed(1)
    again = pipe(PROMPT, num_candidates=2, **CALL)
    assert again.seeds == first.seeds != other.seeds
    assert torch.equal(again.images, first.images)


def test_several_prompts_are_searched_one_by_one(pipe):
    prompts, negatives = [PROMPT, "a red apple"], ["a cat", "a dog"]
    call = {"num_candidates": 4, "top_k": 2, "seed": 0, "candidate_batch_size": 2, **CALL}
    pipe.scorer = Recorder()
    both = pipe(prompts, negative_prompt=negatives, **call)
    assert pipe.scorer.prompts == [prompts[0]] * 2 + [prompts[1]] * 2
    for i in range(2):
        alone = pipe(prompts[i], negative_prompt=negatives[i], **call)
        part = slice(2 * i, 2 * i + 2)
        assert torch.equal(both.images[part], alone.images)
        assert (both.scores[part], both.seeds[part]) == (alone.scores, alone.seeds)


def test_one_negative_prompt_serves_all(pipe):
    call = {"num_candidates": 2, "seed": 0, **CALL}
    one = pipe([PROMPT, PROMPT], negative_prompt="a cat", **call)
    assert torch.equal(one.images, pipe([PROMPT, PROMPT], negative_prompt=["a cat"] * 2, **call).images)
    assert not torch.equal(one.images, pipe([PROMPT, PROMPT], **call).images)


@pytest.mark.parametrize(
    "arguments",
    [
        {"guidance_scale": 1.0},
        {"guidance_rescale": 0.7},
        {"eta": 1.0},
        {"height": 24, "width": 32},
        {"negative_prompt": "a cat"},
    ],
    ids=str,
)
def test_the_arguments_of_stable_diffusion_reach_it(pipe, stock, arguments):
    out = pipe(PROMPT, num_candidates=2, return_all=True, seed=0, candidate_batch_size=1, **(CALL | arguments))
    for image, seed in zip(out.images, out.seeds, strict=True):
        assert torch.equal(image, stock_image(stock, seed, **arguments))


def test_the_scale_of_a_lora_reaches_the_text_encoder(pipe, monkeypatch):
    scales = []
    encode = pipe.encode_prompt

    def spy(*args, **kwargs):
        scales.append(kwargs.get("lora_scale"))
        return encode(*args, **(kwargs | {"lora_scale": None}))

    monkeypatch.setattr(pipe, "encode_prompt", spy)
    pipe(PROMPT, num_candidates=2, seed=0, candidate_batch_size=2, cross_attention_kwargs={"scale": 0.5}, **CALL)
    assert scales == [0.5]


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_the_form_of_the_images_is_stock(pipe, stock, output_type):
    out = pipe(
        PROMPT, num_candidates=2, top_k=2, seed=0, candidate_batch_size=1, **(CALL | {"output_type": output_type})
    )
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in out.seeds]
    singles = [stock(PROMPT, generator=noise, **(CALL | {"output_type": output_type})).images for noise in generators]
    assert type(out.images) is type(singles[0])
    for ours, theirs in zip(out.images, singles, strict=True):
        assert np.array_equal(np.asarray(ours), np.asarray(theirs[0]))


def test_a_tuple_has_the_fields_in_order(pipe):
    call = {"num_candidates": 3, "top_k": 2, "seed": 0, **CALL}
    out, plain = pipe(PROMPT, **call), pipe(PROMPT, return_dict=False, **call)
    assert type(plain) is tuple
    assert torch.equal(plain[0], out.images)
    assert plain[1:] == (out.nsfw_content_detected, out.scores, out.seeds, out.indices)


def test_a_callback_sees_each_step_of_each_batch(pipe):
    steps = []

    def see(which, step, timestep, tensors):
        assert type(which) is type(pipe)
        steps.append((step, len(tensors["latents"])))
        return tensors

    pipe(PROMPT, num_candidates=3, seed=0, candidate_batch_size=2, callback_on_step_end=see, **CALL)
    assert steps == [(0, 2), (1, 2), (0, 1), (1, 1)]


def test_an_interruption_ends_the_search(pipe):
    pipe.scorer = Recorder()

    def interrupt(which, step, timestep, tensors):
        which._interrupt = len(pipe.scorer.prompts) == 1
        return tensors

    out = pipe(
        [PROMPT, PROMPT],
        num_candidates=8,
        return_all=True,
        seed=0,
        candidate_batch_size=2,
        callback_on_step_end=interrupt,
        **CALL,
    )
    assert sorted(out.seeds) == [0, 1, 2, 3]


class Checker(nn.Module):
    """Replaces those of its images, counted over all calls, that are named."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, bad: set[int]):
        super().__init__()
        self.bad, self.seen = bad, 0

    def forward(self, images, clip_input):
        flags = [self.seen + i in self.bad for i in range(len(images))]
        self.seen += len(images)
        images[np.array(flags) if isinstance(images, np.ndarray) else torch.tensor(flags)] = 0.0
        return images, flags


@pytest.fixture
def checked(components, quiet):
    def build(bad: set[int]) -> StableDiffusionBestOfNPipeline:
        safe = {
            "safety_checker": Checker(bad),
            "feature_extractor": CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16),
        }
        return quiet(StableDiffusionBestOfNPipeline(**(components | safe), scorer=Darkness()))

    return build


class Darkness(BrightnessScorer):
    """The darkest wins: black images would, if they were judged by their pixels."""

    def score(self, prompt, images):
        return -super().score(prompt, images)


def test_replaced_images_come_last(checked):
    out = checked({0, 3})(PROMPT, num_candidates=5, return_all=True, seed=0, candidate_batch_size=2, **CALL)
    assert out.indices[-2:] == [0, 3]
    assert out.nsfw_content_detected == [False] * 3 + [True] * 2
    assert all(map(math.isnan, out.scores[-2:])) and not any(map(math.isnan, out.scores[:3]))
    assert out.images[-2:].abs().max() == 0


def test_where_all_are_replaced_black_images_are_returned_as_by_the_stock_pipeline(checked):
    out = checked(set(range(4)))(PROMPT, num_candidates=4, top_k=2, seed=0, **CALL)
    assert out.nsfw_content_detected == [True, True]
    assert out.indices == [0, 1]
    assert out.images.abs().max() == 0


def test_images_that_are_not_finite_come_last(pipe):
    class Careless:
        name = "careless"

        def score(self, prompt, images):
            return torch.ones(len(images))

    def spoil(which, step, timestep, tensors):
        tensors["latents"][1] = math.nan
        return tensors

    pipe.scorer = Careless()
    out = pipe(PROMPT, num_candidates=4, return_all=True, seed=0, callback_on_step_end=spoil, **CALL)
    assert out.indices == [0, 2, 3, 1]
    assert math.isnan(out.scores[-1])
    assert not out.images[-1].isfinite().any()


def test_scores_that_are_not_finite_come_last(pipe):
    class Broken:
        name = "broken"

        def score(self, prompt, images):
            return torch.tensor([math.nan, 1.0, math.inf, 2.0])

    pipe.scorer = Broken()
    out = pipe(PROMPT, num_candidates=4, top_k=2, seed=0, candidate_batch_size=4, **CALL)
    assert out.indices == [3, 1]


def test_no_more_than_a_batch_and_the_best_is_held(pipe):
    pipe.scorer = Recorder()
    pipe(PROMPT, num_candidates=12, top_k=3, seed=0, candidate_batch_size=2, **CALL)
    assert len(pipe.scorer.alive) == 6
    assert max(pipe.scorer.alive) <= 2  # the batch in hand, and the one before it


def test_a_batch_that_does_not_fit_is_halved(pipe, monkeypatch):
    forward, sizes = pipe.unet.forward, []

    def small(sample, *args, **kwargs):
        if len(sample) > 2 * 2:  # twice two with guidance
            raise torch.OutOfMemoryError("no more")
        sizes.append(len(sample) // 2)
        return forward(sample, *args, **kwargs)

    whole = pipe(PROMPT, num_candidates=5, return_all=True, seed=0, candidate_batch_size=2, **CALL)
    monkeypatch.setattr(pipe.unet, "forward", small)
    halved = pipe(PROMPT, num_candidates=5, return_all=True, seed=0, candidate_batch_size=4, **CALL)
    assert max(sizes) == 2
    assert torch.equal(halved.images, whole.images)
    assert halved.seeds == whole.seeds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_candidates": 0}, "num_candidates: expected at least 1, got 0"),
        ({"top_k": 5}, "1 to num_candidates=4 images, got 5"),
        ({"top_k": 0}, "1 to num_candidates=4 images, got 0"),
        ({"num_images_per_prompt": 5}, "1 to num_candidates=4 images, got 5"),
        ({"num_candidates": 1, "top_k": 2}, "1 to num_candidates=1 images, got 2"),
        ({"top_k": 2, "num_images_per_prompt": 3}, "top_k=2 and num_images_per_prompt=3"),
        ({"top_k": 2, "return_all": True}, "return_all and top_k=2"),
        ({"seed": 0, "generator": torch.Generator()}, "seed and generator"),
        ({"generator": [torch.Generator()]}, "a generator for each of 4 candidates, got a list of 1"),
        ({"latents": torch.zeros(4, 4, 8, 8)}, "latents: expected None"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 32, 32)}, "prompt_embeds: expected score_prompt beside them"),
        ({"prompt": None}, "prompt: expected text"),
        ({"prompt": []}, "prompt: expected text"),
        ({"output_type": "latent"}, "got 'latent'"),
        ({"candidate_batch_size": 0}, "candidate_batch_size: expected at least 1, got 0"),
        ({"negative_prompt": ["a", "b"]}, "got 2 for 1 prompts"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_refusals(pipe, arguments, message):
    with pytest.raises(UsageError, match=message):
        pipe(**({"prompt": PROMPT, "num_candidates": 4, **CALL} | arguments))


def test_without_a_scorer_the_way_to_pass_one_is_named(pipe):
    pipe.scorer = None
    with pytest.raises(ValueError, match=r"num_candidates=2 needs a scorer.*from_pipe\(pipe, scorer=load_scorer"):
        pipe(PROMPT, num_candidates=2, **CALL)
    assert pipe(PROMPT, **CALL).images.shape == (1, 3, 16, 16)


def test_a_model_can_be_the_scorer(components, quiet, encoder):
    pipe = quiet(StableDiffusionBestOfNPipeline(**components, scorer=encoder))
    out = pipe(PROMPT, num_candidates=3, return_all=True, seed=0, **CALL)
    assert torch.equal(torch.tensor(out.scores), encoder.score(PROMPT, out.images))


def test_a_bare_torch_module_is_refused_as_a_scorer(components):
    with pytest.raises(UsageError, match="scorer: diffusers asks a torch module for its device"):
        StableDiffusionBestOfNPipeline(**components, scorer=nn.Identity())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers' solver
def test_a_search_finishes_fewer_and_returns_their_images(pipe, tmp_path):
    schedule = tmp_path / "plan.toml"
    schedule.write_text('strategy = "screening"\nrounds = [{steps = 2, keep = 3}]\n')
    halved = tmp_path / "halved.toml"
    halved.write_text('strategy = "halving"\nrounds = [{share = 0.5, keep = 3}]\n')
    call = {**CALL, "num_candidates": 8, "top_k": 2, "seed": 0, "candidate_batch_size": 4, "num_inference_steps": 4}
    calls = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, arguments: calls.append(len(arguments[0])))
    everything = pipe(PROMPT, **{**call, "top_k": None}, return_all=True)
    full = sum(calls)
    for file in (schedule, halved):
        calls.clear()
        out = pipe(PROMPT, search=file, **call)
        assert len(out.images) == 2 and sum(calls) < full
        for image, index, score in zip(out.images, out.indices, out.scores, strict=True):
            place = everything.indices.index(index)
            assert torch.allclose(image, everything.images[place], atol=1e-4)
            assert score == pytest.approx(everything.scores[place], abs=1e-4)
    handle.remove()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"search": "magic"}, "no search 'magic'"),
        ({"search": "fast", "timesteps": [900, 500]}, "timesteps: expected None with search='fast'"),
        ({"search": "fast", "return_all": True}, "expected fewer images returned"),
    ],
)
def test_a_search_that_cannot_be_is_refused(pipe, arguments, complaint):
    with pytest.raises(UsageError, match=complaint):
        pipe(PROMPT, num_candidates=8, seed=0, **CALL, **arguments)
