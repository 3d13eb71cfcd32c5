"""What diffusers asks of a pipeline: it is Stable Diffusion with one candidate; it is saved, loaded and shared."""

from __future__ import annotations

import inspect
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from diffusers.callbacks import PipelineCallback
from diffusers.utils import dynamic_modules_utils

from sp_rerank.errors import UsageError
from sp_rerank.pipelines import StableDiffusionBestOfNPipeline
from sp_rerank.scorers.aesthetic import AestheticScorer
from sp_rerank.scorers.blip import ADDED_TOKENS, BlipScorer
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.scorers.preprocess import Preprocess

FOLDER = Path(inspect.getfile(StableDiffusionBestOfNPipeline)).parent
PROMPT = "a lemon on the beach"
CALL = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "pt"}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def same(a, b) -> bool:
    """Bit for bit, whatever the output type."""
    return len(a) == len(b) and all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(a, b, strict=True))


# One candidate is Stable Diffusion


def test_the_signature_is_stable_diffusions_and_then_ours():
    stock, ours = (
        list(inspect.signature(cls.__call__).parameters.values())
        for cls in (StableDiffusionPipeline, StableDiffusionBestOfNPipeline)
    )
    described = [(p.name, p.kind, p.default) for p in stock[:-1]]  # the last one is **kwargs
    assert [(p.name, p.kind, p.default) for p in ours[: len(described)]] == described
    added = ours[len(described) : -1]
    names = ["num_candidates", "top_k", "seed", "return_all", "candidate_batch_size", "search", "score_prompt"]
    assert [p.name for p in added] == names
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in added)
    assert ours[-1].kind is stock[-1].kind is inspect.Parameter.VAR_KEYWORD


CALLS = {
    "pil": lambda: {"prompt": PROMPT, "generator": seeded(), "output_type": "pil"},
    "np": lambda: {"prompt": PROMPT, "generator": seeded(), "output_type": "np"},
    "latent": lambda: {"prompt": PROMPT, "generator": seeded(), "output_type": "latent"},
    "several images": lambda: {"prompt": PROMPT, "generator": seeded(), "num_images_per_prompt": 3},
    "prompts": lambda: {"prompt": [PROMPT, "an apple"], "generator": [seeded(1), seeded(2)]},
    "prompts x images": lambda: {"prompt": [PROMPT, "an apple"], "generator": seeded(), "num_images_per_prompt": 2},
    "negative": lambda: {"prompt": PROMPT, "generator": seeded(), "negative_prompt": "a cat"},
    "unguided": lambda: {"prompt": PROMPT, "generator": seeded(), "guidance_scale": 1.0},
    "rescaled": lambda: {"prompt": PROMPT, "generator": seeded(), "guidance_rescale": 0.7, "eta": 1.0},
    "size": lambda: {"prompt": PROMPT, "generator": seeded(), "height": 24, "width": 32},
    "latents": lambda: {"prompt": PROMPT, "latents": torch.randn(1, 4, 8, 8, generator=seeded(3))},
    "embeddings": lambda: {
        "prompt_embeds": torch.randn(2, 32, 32, generator=seeded(3)),
        "negative_prompt_embeds": torch.randn(2, 32, 32, generator=seeded(4)),
        "generator": seeded(),
    },
}


@pytest.mark.parametrize("arguments", CALLS.values(), ids=CALLS)
def test_one_candidate_is_what_stable_diffusion_makes(pipe, stock, arguments):
    ours, theirs = pipe(**(CALL | arguments())), stock(**(CALL | arguments()))
    assert type(ours.images) is type(theirs.images)
    assert same(ours.images, theirs.images)
    assert isinstance(ours, type(theirs))
    assert all(len(field) == len(ours.images) for field in ours.to_tuple())
    assert all(map(math.isnan, ours.scores))


def test_arguments_go_by_position_as_in_stable_diffusion(pipe, stock):
    arguments = (PROMPT, 16, 16, 2, None, None, 3.0, "a cat", 2, 0.0)
    ours = pipe(*arguments, seeded(), output_type="pt", return_dict=False)
    theirs = stock(*arguments, seeded(), output_type="pt", return_dict=False)
    assert torch.equal(ours[0], theirs[0])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers under NumPy 2
@pytest.mark.parametrize("kind", [PNDMScheduler, EulerDiscreteScheduler, LCMScheduler])
def test_so_it_is_with_other_schedulers(pipe, stock, kind):
    images = []
    for either in (pipe, stock):
        either.scheduler = kind.from_config(either.scheduler.config, skip_prk_steps=True)
        images.append(either(PROMPT, generator=seeded(), **CALL).images)
    assert torch.equal(*images)


def test_without_generators_the_noise_is_torchs(pipe, stock):
    torch.manual_seed(3)
    ours = pipe(PROMPT, **CALL)
    torch.manual_seed(3)
    assert torch.equal(ours.images, stock(PROMPT, **CALL).images)
    assert ours.seeds == [None]


def test_a_seed_is_a_generator_for_each_image(pipe, stock):
    ours = pipe([PROMPT, "an apple"], seed=8, num_images_per_prompt=2, **CALL)
    generators = [seeded(8), seeded(9), seeded(8), seeded(9)]
    theirs = stock([PROMPT, "an apple"], generator=generators, num_images_per_prompt=2, **CALL)
    assert torch.equal(ours.images, theirs.images)
    assert (ours.seeds, ours.indices) == ([8, 9, 8, 9], [0, 1, 0, 1])


def test_seeds_are_told_where_they_are_known(pipe):
    assert pipe(PROMPT, generator=seeded(5), **CALL).seeds == [5]
    assert pipe([PROMPT] * 2, generator=[seeded(5), seeded(2)], **CALL).seeds == [5, 2]
    assert pipe(PROMPT, generator=seeded(5), num_images_per_prompt=2, **CALL).seeds == [None, None]


def test_a_tuple_begins_like_stable_diffusions(pipe, stock):
    ours = pipe(PROMPT, generator=seeded(), return_dict=False, **CALL)
    theirs = stock(PROMPT, generator=seeded(), return_dict=False, **CALL)
    assert torch.equal(ours[0], theirs[0])
    assert ours[1] == [False] and theirs[1] is None  # always filled, so that places never shift
    assert len(ours) == 5


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("prompts", [1, 2])
def test_images_per_prompt(pipe, count, prompts):
    assert pipe([PROMPT] * prompts, num_images_per_prompt=count, **CALL).images.shape == (prompts * count, 3, 16, 16)


def test_a_batch_is_close_to_its_singles(pipe):
    prompts = [PROMPT, "an apple", "a teddy bear and a skateboard on the grass"]
    batch = pipe(prompts, generator=[seeded(i) for i in range(3)], **CALL).images
    singles = torch.cat([pipe(prompt, generator=seeded(i), **CALL).images for i, prompt in enumerate(prompts)])
    assert (batch - singles).abs().max() < 1e-4


def test_the_callback_may_change_its_tensors(pipe):
    seen = []

    def blank(which, step, timestep, tensors):
        seen.append(set(tensors))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else {}

    names = pipe._callback_tensor_inputs
    out = pipe(
        PROMPT,
        callback_on_step_end=blank,
        callback_on_step_end_tensor_inputs=names,
        **(CALL | {"output_type": "latent"}),
    )
    assert seen == [set(names)] * 2
    assert out.images.abs().max() == 0
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs"):
        pipe(PROMPT, callback_on_step_end=blank, callback_on_step_end_tensor_inputs=["noise"], **CALL)


@pytest.mark.parametrize("num_candidates", [1, 2])
def test_a_callback_object_works(pipe, num_candidates):
    class Counter(PipelineCallback):
        tensor_inputs = ["latents", "prompt_embeds"]  # noqa: RUF012
        calls = 0

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            self.calls += set(callback_kwargs) == set(self.tensor_inputs)
            return callback_kwargs

    counter = Counter(cutoff_step_ratio=None, cutoff_step_index=1)
    pipe(PROMPT, num_candidates=num_candidates, candidate_batch_size=2, callback_on_step_end=counter, **CALL)
    assert counter.calls == 2


# The parts


def test_the_components_make_the_same_pipeline(pipe):
    assert set(pipe.components) == {*StableDiffusionPipeline(**stock_parts(pipe)).components, "scorer"}
    again = StableDiffusionBestOfNPipeline(**pipe.components, requires_safety_checker=False)
    assert torch.equal(pipe(PROMPT, seed=0, **CALL).images, again(PROMPT, seed=0, **CALL).images)


def stock_parts(pipe) -> dict:
    parts = {name: part for name, part in pipe.components.items() if name != "scorer"}
    return {**parts, "requires_safety_checker": False}


def test_every_model_has_its_place_in_the_order_of_offloading(components, encoder):
    pipe = StableDiffusionBestOfNPipeline(**components, scorer=encoder)
    order = pipe.model_cpu_offload_seq.split("->")
    models = {name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    assert models <= set(order)
    assert order[-1] == "scorer"
    assert order[:-1] == StableDiffusionPipeline.model_cpu_offload_seq.split("->")


def test_the_models_are_freed_after_the_scores(pipe, monkeypatch):
    events = []
    score = pipe.scorer.score
    monkeypatch.setattr(pipe.scorer, "score", lambda *args: events.append("score") or score(*args))
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: events.append("free"))
    pipe(PROMPT, num_candidates=2, candidate_batch_size=1, **CALL)
    assert events == ["free", "score", "free", "score", "free"]


def test_precision_and_device_reach_all_models(components, encoder, quiet):
    pipe = quiet(StableDiffusionBestOfNPipeline(**components, scorer=encoder)).to("cpu", torch.bfloat16)
    models = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert {part.dtype for part in models} == {torch.bfloat16} and encoder in models
    out = pipe(PROMPT, num_candidates=3, top_k=2, seed=0, **(CALL | {"output_type": "np"}))
    assert np.isfinite(out.images).all() and np.isfinite(out.scores).all()


@pytest.mark.parametrize("switch", ["attention_slicing", "vae_slicing", "vae_tiling"])
def test_savings_of_memory_change_little(pipe, switch):
    call = {"num_candidates": 3, "return_all": True, "seed": 0, **CALL}
    before = pipe(PROMPT, **call)
    {
        "attention_slicing": lambda: pipe.enable_attention_slicing(slice_size=1),
        "vae_slicing": lambda: pipe.vae.enable_slicing(),
        "vae_tiling": lambda: pipe.vae.enable_tiling(),
    }[switch]()
    after = pipe(PROMPT, **call)
    assert after.seeds == before.seeds
    assert (after.images - before.images).abs().max() < 1e-3


# From another pipeline


def test_from_pipe_shares_the_weights(stock, encoder):
    addresses = [weight.data_ptr() for weight in stock.unet.parameters()]
    ours = StableDiffusionBestOfNPipeline.from_pipe(stock, scorer=encoder)
    assert all(getattr(ours, name) is part for name, part in stock.components.items())
    assert [weight.data_ptr() for weight in ours.unet.parameters()] == addresses
    assert ours.scorer is encoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_pipe_keeps_the_precision(stock, dtype):
    ours = StableDiffusionBestOfNPipeline.from_pipe(stock.to(dtype), scorer=BrightnessScorer())
    assert ours.unet.dtype == ours.vae.dtype == ours.text_encoder.dtype == dtype
    assert StableDiffusionBestOfNPipeline.from_pipe(ours, dtype=torch.float32).unet.dtype == torch.float32


def test_from_pipe_keeps_the_scorer_of_our_own(components, encoder):
    for scorer in (encoder, BrightnessScorer()):
        ours = StableDiffusionBestOfNPipeline(**components, scorer=scorer)
        assert StableDiffusionBestOfNPipeline.from_pipe(ours).scorer is scorer


def test_back_to_stable_diffusion_and_to_its_other_pipelines(pipe):
    before = pipe(PROMPT, seed=0, **CALL).images
    stock = StableDiffusionPipeline.from_pipe(pipe)
    stock.set_progress_bar_config(disable=True)
    assert torch.equal(stock(PROMPT, generator=seeded(), **CALL).images, before)
    assert StableDiffusionImg2ImgPipeline.from_pipe(pipe).unet is pipe.unet


# Files


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Where diffusers copies the code that it runs."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def stock_folder(stock, tmp_path) -> Path:
    stock.save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"


@pytest.fixture
def our_folder(components, encoder, tmp_path) -> Path:
    StableDiffusionBestOfNPipeline(**components, scorer=encoder).save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


@pytest.fixture
def expected(components, encoder, quiet) -> torch.Tensor:
    """What a pipeline loaded from a file must make again."""
    return choose(quiet(StableDiffusionBestOfNPipeline(**components, scorer=encoder)))


def choose(pipe) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(PROMPT, num_candidates=4, top_k=2, seed=0, **CALL).images


def test_a_stock_folder_is_opened(stock_folder, encoder, expected):
    pipe = StableDiffusionBestOfNPipeline.from_pretrained(stock_folder, scorer=encoder)
    assert torch.equal(choose(pipe), expected)
    assert StableDiffusionBestOfNPipeline.from_pretrained(stock_folder).scorer is None


def test_any_scorer_may_be_passed(stock_folder, caplog):
    scorer = BrightnessScorer()
    assert StableDiffusionBestOfNPipeline.from_pretrained(stock_folder, scorer=scorer).scorer is scorer
    assert "Expected types" not in caplog.text


def test_a_saved_folder_is_opened_with_its_scorer(our_folder, encoder, expected):
    pipe = StableDiffusionBestOfNPipeline.from_pretrained(our_folder)
    assert isinstance(pipe.scorer, DualEncoder)
    assert pipe.scorer.name == encoder.name
    assert torch.equal(choose(pipe), expected)


def test_a_saved_folder_is_saved_again(our_folder, tmp_path):
    StableDiffusionBestOfNPipeline.from_pretrained(our_folder).save_pretrained(tmp_path / "again")
    for name in ("model_index.json", "pipeline.py"):
        first, second = ((folder / name).read_text() for folder in (our_folder, tmp_path / "again"))
        if name.endswith("json"):
            first, second = ({**json.loads(text), "_name_or_path": ""} for text in (first, second))
        assert first == second
    index = json.loads((our_folder / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "StableDiffusionBestOfNPipeline"]
    assert index["scorer"] == ["sp_rerank.scorers.clip", "DualEncoder"]


def test_optional_components_stay_absent(components, tmp_path):
    StableDiffusionBestOfNPipeline(**components).save_pretrained(tmp_path)
    pipe = StableDiffusionBestOfNPipeline.from_pretrained(tmp_path)
    assert all(getattr(pipe, name) is None for name in pipe._optional_components)


def test_a_scorer_that_cannot_be_saved_is_said_to_be_lost(components, tmp_path, caplog):
    StableDiffusionBestOfNPipeline(**components, scorer=BrightnessScorer()).save_pretrained(tmp_path)
    assert StableDiffusionBestOfNPipeline.from_pretrained(tmp_path).scorer is None


@pytest.mark.usefixtures("own_cache")
def test_a_saved_folder_names_its_class(our_folder, expected):
    pipe = DiffusionPipeline.from_pretrained(our_folder, trust_remote_code=True)
    assert type(pipe).__name__ == "StableDiffusionBestOfNPipeline"
    assert type(pipe) is StableDiffusionBestOfNPipeline  # not a copy of it
    assert torch.equal(choose(pipe), expected)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("place", [FOLDER, FOLDER / "pipeline.py"], ids=["folder", "file"])
def test_a_custom_pipeline_on_a_stock_folder(stock_folder, encoder, expected, place):
    for _ in range(2):  # the second time the module is there already
        pipe = DiffusionPipeline.from_pretrained(
            stock_folder, custom_pipeline=str(place), scorer=encoder, trust_remote_code=True
        )
        assert type(pipe).__name__ == "StableDiffusionBestOfNPipeline"
        assert torch.equal(choose(pipe), expected)
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(stock_folder, custom_pipeline=str(place), scorer=encoder)


@pytest.mark.usefixtures("own_cache")
def test_a_pipeline_of_the_copied_class_is_saved_too(stock_folder, encoder, expected, tmp_path):
    copied = DiffusionPipeline.from_pretrained(
        stock_folder, custom_pipeline=str(FOLDER), scorer=encoder, trust_remote_code=True
    )
    copied.save_pretrained(tmp_path / "copied")
    assert torch.equal(choose(StableDiffusionBestOfNPipeline.from_pretrained(tmp_path / "copied")), expected)


def test_our_class_runs_no_code_of_a_folder(our_folder, expected, monkeypatch):
    monkeypatch.setattr(dynamic_modules_utils, "DIFFUSERS_DISABLE_REMOTE_CODE", True)
    (our_folder / "pipeline.py").write_text("raise SystemExit('this must not run')")
    assert torch.equal(choose(StableDiffusionBestOfNPipeline.from_pretrained(our_folder)), expected)
    with pytest.raises(ValueError, match="DIFFUSERS_DISABLE_REMOTE_CODE"):
        DiffusionPipeline.from_pretrained(our_folder, trust_remote_code=True)


def test_the_file_shows_one_pipeline_class():
    found = dynamic_modules_utils.find_pipeline_class(sys.modules["sp_rerank.pipelines.pipeline"])
    assert found is StableDiffusionBestOfNPipeline


OPENS = """
import sys
import torch
if sys.argv[1] == "stock":
    from diffusers import DiffusionPipeline
    pipe = DiffusionPipeline.from_pretrained(sys.argv[2], trust_remote_code=True)
else:
    from sp_rerank.pipelines import StableDiffusionBestOfNPipeline
    pipe = StableDiffusionBestOfNPipeline.from_pretrained(sys.argv[2])
pipe.set_progress_bar_config(disable=True)
print(pipe.scorer.name)
out = pipe("a lemon", num_inference_steps=2, num_candidates=2, seed=0, height=16, width=16)
print(out.scores)
"""


def tiny_blip():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "lemon", *ADDED_TOKENS]
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    return BlipScorer(
        name="tiny-blip",
        vision_cfg={**size, "image_size": 16, "patch_size": 8},
        text_cfg={**size, "encoder_hidden_size": 16, "vocab_size": len(pieces), "max_position_embeddings": 8},
        head="itm",
        preprocess=Preprocess(16, geometry="squash").to_dict(),
        max_tokens=8,
        vocabulary=pieces,
        license="none",
        source="random weights",
    ).eval()


def tiny_aesthetic(encoder):
    torch.manual_seed(0)
    config = {key: encoder.config[key] for key in ("embed_dim", "vision_cfg", "quick_gelu", "preprocess")}
    return AestheticScorer(name="tiny-aesthetic", hidden_sizes=[4], license="none", source="random", **config).eval()


@pytest.mark.parametrize("door", ["ours", "stock"])
@pytest.mark.parametrize("kind", ["clip", "blip", "aesthetic"])
def test_a_saved_folder_opens_in_a_new_process(components, encoder, tmp_path, kind, door, quiet):
    scorer = {"clip": lambda: encoder, "blip": tiny_blip, "aesthetic": lambda: tiny_aesthetic(encoder)}[kind]()
    pipe = quiet(StableDiffusionBestOfNPipeline(**components, scorer=scorer))
    pipe.save_pretrained(tmp_path / "saved")
    expected = pipe("a lemon", num_inference_steps=2, num_candidates=2, seed=0, height=16, width=16).scores
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", OPENS, door, tmp_path / "saved"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    name, scores = result.stdout.splitlines()
    assert name == scorer.name
    assert json.loads(scores) == pytest.approx(expected, abs=1e-6)


def test_without_a_precision_all_of_it_is_float32(components, encoder, tmp_path):
    StableDiffusionBestOfNPipeline(**components, scorer=encoder).to(torch.float16).save_pretrained(tmp_path)
    pipe = StableDiffusionBestOfNPipeline.from_pretrained(tmp_path)
    kept = [pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype, pipe.scorer.dtype]
    assert kept == [torch.float32] * 4
    assert StableDiffusionBestOfNPipeline.from_pretrained(tmp_path, dtype=torch.float16).unet.dtype == torch.float16


def test_from_pipe_converts_nothing(stock, encoder):
    stock.to(torch.bfloat16)
    stock.vae.to(torch.float32)
    ours = StableDiffusionBestOfNPipeline.from_pipe(stock, scorer=encoder)
    kept = [ours.unet.dtype, ours.text_encoder.dtype, ours.vae.dtype, ours.scorer.dtype]
    assert kept == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]


def test_a_saved_folder_in_shards_opens_with_its_scorer(components, encoder, expected, tmp_path):
    ours = StableDiffusionBestOfNPipeline(**components, scorer=encoder)
    ours.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards" / "unet").glob("*.safetensors"))) > 1
    assert torch.equal(choose(StableDiffusionBestOfNPipeline.from_pretrained(tmp_path / "shards")), expected)


def test_a_scorer_is_not_saved_as_a_pickle(components, encoder, tmp_path):
    ours = StableDiffusionBestOfNPipeline(**components, scorer=encoder)
    with pytest.raises(UsageError, match="safe_serialization is False; expected True: the scorer tiny"):
        ours.save_pretrained(tmp_path, safe_serialization=False)


def test_components_without_a_scorer_make_a_stable_diffusion(components):
    ours = StableDiffusionBestOfNPipeline(**components)
    assert StableDiffusionPipeline(**ours.components).unet is ours.unet
    assert StableDiffusionBestOfNPipeline(**ours.components).scorer is None


@pytest.mark.parametrize("asked", [{"seed": -1}, {"generator": -1}, {"seed": 2**64 - 1}])
def test_seeds_that_no_generator_takes_are_refused(pipe, asked):
    if "generator" in asked:
        asked = {"generator": torch.Generator().manual_seed(asked["generator"])}
    with pytest.raises(UsageError, match="expected seeds from 0 to"):
        pipe(PROMPT, num_candidates=3, **asked, **CALL)


def test_a_broken_scorer_is_named(components, quiet):
    class Broken(BrightnessScorer):
        def score(self, prompt, images):
            return [1.0] * len(images)

    with pytest.raises(UsageError, match="scorer brightness: expected a score for each of 2 images"):
        quiet(StableDiffusionBestOfNPipeline(**components, scorer=Broken()))(PROMPT, num_candidates=2, seed=0, **CALL)
