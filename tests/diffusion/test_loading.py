"""The Stable Diffusion v1.4 path, on a checkpoint of that exact layout: safety checker, 77 tokens, precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from support.doubles import SeededPipe
from support.tiny import save_checkpoint

from sp_rerank import cli, generate, load_pipeline, load_scorer
from sp_rerank.diffusion.loading import MINI, default_settings, find_dtype
from sp_rerank.diffusion.prompt_limits import truncations
from sp_rerank.diffusion.sampler import Sampler
from sp_rerank.errors import NothingUsableError, StorageError, UsageError
from sp_rerank.pipelines import StableDiffusionBestOfNPipeline
from sp_rerank.scorers.brightness import BrightnessScorer

FLAGS_ALL, FLAGS_NONE = -2.0, 2.0


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("sd") / "lenient", safety_threshold=FLAGS_NONE)


@pytest.fixture(scope="session")
def strict_checkpoint(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("sd") / "strict", safety_threshold=FLAGS_ALL)


def make(folder: Path, out: Path | None = None, **arguments):
    pipe = load_pipeline(str(folder), **arguments)
    return generate("a lemon", pipe=pipe, scorer=BrightnessScorer(), n=4, top_k=2, steps=2, out=out)


def test_the_layout_is_that_of_stable_diffusion(checkpoint):
    index = json.loads((checkpoint / "model_index.json").read_text())
    assert {name: parts[1] for name, parts in index.items() if isinstance(parts, list) and parts[1]} == {
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "unet": "UNet2DConditionModel",
        "scheduler": "PNDMScheduler",
        "safety_checker": "StableDiffusionSafetyChecker",
        "feature_extractor": "CLIPImageProcessor",
    }
    assert not list(checkpoint.rglob("*.bin"))


def test_the_safety_checker_is_on_and_lets_through(checkpoint, tmp_path):
    best = make(checkpoint, tmp_path / "run")
    assert len(best) == 2
    assert json.loads((tmp_path / "run" / "run.json").read_text())["safety_checker"] is True


def test_black_images_never_win(strict_checkpoint, tmp_path):
    with pytest.raises(NothingUsableError, match=r"none of 4 .* replaced 4"):
        make(strict_checkpoint, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "candidates.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["flagged"] * 4


def test_without_the_safety_checker(strict_checkpoint):
    assert len(make(strict_checkpoint, safety_checker=False)) == 2


def test_stable_diffusion_s_own_steps(checkpoint):
    pipe = load_pipeline(str(checkpoint))
    sampler = Sampler(pipe, "a lemon", batch_size=2, guidance_scale=7.5, num_inference_steps=50)
    (batch,) = sampler.batches({0: 0, 1: 1})
    assert batch.nfe == 51


def test_a_prompt_of_77_tokens_and_one_of_122(checkpoint):
    pipe, scorer = load_pipeline(str(checkpoint)), BrightnessScorer()
    assert truncations(pipe, scorer, " ".join(["lemon"] * 75)) == []
    (cut,) = truncations(pipe, scorer, " ".join(["lemon"] * 115 + ["a", "secret", "tail", "of", "words"]))
    print(cut)
    assert (cut.tokens, cut.limit) == (122, 77)
    assert cut.tail.endswith("lemon a secret tail of words")
    assert len(cut.tail.split()) == 45


def test_another_scheduler(checkpoint):
    assert type(load_pipeline(str(checkpoint), scheduler="DDIM").scheduler).__name__ == "DDIMScheduler"
    with pytest.raises(UsageError, match=r"no scheduler 'Magic' .* expected one of .*DDIM"):
        load_pipeline(str(checkpoint), scheduler="Magic")


def test_a_scheduler_that_needs_a_package_names_it(checkpoint, monkeypatch):
    import diffusers
    from diffusers.utils.dummy_torch_and_torchsde_objects import DPMSolverSDEScheduler

    monkeypatch.setattr(diffusers, "DPMSolverSDEScheduler", DPMSolverSDEScheduler)
    monkeypatch.setattr("diffusers.utils.import_utils._torchsde_available", False)
    with pytest.raises(UsageError, match="DPMSolverSDEScheduler needs torchsde"):
        load_pipeline(str(checkpoint), scheduler="DPMSolverSDE")


def test_a_model_whose_scheduler_needs_a_package_names_it(checkpoint, tmp_path, monkeypatch):
    import diffusers
    from diffusers.utils.dummy_torch_and_torchsde_objects import DPMSolverSDEScheduler

    folder = shutil.copytree(checkpoint, tmp_path / "model")
    for file, key in ((folder / "model_index.json", "scheduler"), (folder / "scheduler/scheduler_config.json", None)):
        stored = json.loads(file.read_text())
        stored |= {key: ["diffusers", "DPMSolverSDEScheduler"]} if key else {"_class_name": "DPMSolverSDEScheduler"}
        file.write_text(json.dumps(stored))
    monkeypatch.setattr(diffusers, "DPMSolverSDEScheduler", DPMSolverSDEScheduler)
    monkeypatch.setattr("diffusers.utils.import_utils._torchsde_available", False)
    with pytest.raises(UsageError, match="torchsde"):
        load_pipeline(str(folder))


def test_loading_prints_nothing_and_leaves_the_settings(checkpoint, capfd):
    """Float16 makes diffusers warn, and its bars are on."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    for library in libraries:
        library.enable_progress_bar()
        library.set_verbosity_warning()
    load_pipeline(str(checkpoint), dtype=torch.float16, scheduler="EDMEuler")
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == ""
    for library in libraries:
        assert library.is_progress_bar_enabled()
        assert library.get_verbosity() == library.WARNING


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ({"transformer": ["diffusers", "FluxTransformer2DModel"]}, torch.bfloat16),
        ({"unet": ["diffusers", "UNet2DConditionModel"]}, torch.float16),
        (["no table"], torch.float16),
    ],
)
def test_the_precision_on_an_accelerator(tmp_path, index, expected):
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert find_dtype("auto", str(tmp_path), "cuda:0") == expected
    assert find_dtype("auto", str(tmp_path), "cpu") == torch.float32
    assert find_dtype("float32", str(tmp_path), "cuda") == torch.float32
    assert find_dtype("auto", "sd-v1.4", "cuda") == torch.float16


def test_settings_of_pipelines_that_lack_an_argument():
    from support.pipelines import build

    assert default_settings(build("QwenImagePipeline")[0])[:2] == (50, 0.0)  # its guidance_scale is None
    assert default_settings(build("LatentConsistencyModelPipeline")[0])[:2] == (4, 8.5)

    class Bare(SeededPipe):
        def __call__(self, prompt: str) -> None: ...

    assert default_settings(Bare())[:2] == (50, 0.0)


@pytest.mark.parametrize("ours", [False, True])
def test_the_embedded_pipeline_in_its_class_without_a_precision(ours):
    """As a stranger loads it: no argument."""
    kind = StableDiffusionBestOfNPipeline if ours else StableDiffusionPipeline
    pipe: Any = kind.from_pretrained(MINI)
    pipe.set_progress_bar_config(disable=True)
    images = pipe("a cat", num_inference_steps=1, output_type="pt").images
    assert images.shape == (1, 3, 64, 64)
    assert images.isfinite().all()


def test_half_precision(checkpoint):
    best = make(checkpoint, dtype=torch.bfloat16)
    assert len(best) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_on_an_accelerator(checkpoint):
    assert len(make(checkpoint, device="cuda", dtype=torch.float16)) == 2


def test_weights_that_are_a_pickle_are_refused(checkpoint, tmp_path):
    """A hostile one, and one that torch would read without harm: neither is opened."""
    import pickle

    class Exploit:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    folder = shutil.copytree(checkpoint, tmp_path / "model")
    harmless = load_pipeline(str(checkpoint)).unet.state_dict()
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    target = folder / "unet" / "diffusion_pytorch_model.bin"
    target.write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(StorageError, match="cannot be loaded"):
        load_pipeline(str(folder))
    assert not (tmp_path / "owned").exists()
    torch.save(harmless, target)
    with pytest.raises(StorageError, match="cannot be loaded"):
        load_pipeline(str(folder))


@pytest.mark.parametrize(("component", "lost"), [
    ("unet", "conv_in.bias"), ("vae", "decoder.conv_in.bias"), ("text_encoder", "final_layer_norm.bias"),
    ("safety_checker", "special_care_embeds"),
])  # fmt: skip
def test_weights_that_are_missing_are_said_and_not_made_up(checkpoint, tmp_path, component, lost):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (file,) = (folder / component).glob("*.safetensors")
    state = safetensors.torch.load_file(file)
    (key,) = (key for key in state if key.endswith(lost))
    safetensors.torch.save_file({name: value for name, value in state.items() if name != key}, file, {"format": "pt"})
    with pytest.raises(StorageError, match=rf"model/{component} lacks 1 of its weights, .*{lost}; fetch it again"):
        load_pipeline(str(folder))
    if component == "safety_checker":
        assert load_pipeline(str(folder), safety_checker=False).safety_checker is None


def test_what_the_drop_in_saved_is_opened_without_its_code(checkpoint, tmp_path):
    stock = load_pipeline(str(checkpoint))
    saved = tmp_path / "saved"
    StableDiffusionBestOfNPipeline.from_pipe(stock, scorer=load_scorer("clip-mini")).save_pretrained(saved)
    (saved / "pipeline.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\n")
    pipe = load_pipeline(str(saved))
    assert isinstance(pipe, StableDiffusionPipeline)
    assert not isinstance(pipe, StableDiffusionBestOfNPipeline)
    assert pipe.safety_checker is not None
    ours, theirs = (generate("a lemon", pipe=p, scorer=BrightnessScorer(), n=2, steps=2) for p in (pipe, stock))
    assert [image.image.tobytes() for image in ours] == [image.image.tobytes() for image in theirs]
    assert not (tmp_path / "owned").exists()
    assert load_pipeline(str(saved), safety_checker=False, scheduler="DDIM").safety_checker is None


def test_the_command_opens_what_the_drop_in_saved(checkpoint, tmp_path, monkeypatch):
    StableDiffusionBestOfNPipeline.from_pretrained(checkpoint).save_pretrained(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    words = ["generate", "a lemon", "--model", "saved", "--n", "2", "-k", "1", "--steps", "1", "-o", "run"]
    monkeypatch.setattr("sys.argv", ["sp-rerank", *words, "--scorer", "brightness"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    config = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (config["model"], config["pipeline"]) == ("saved", "StableDiffusionPipeline")
    monkeypatch.setattr("sys.argv", ["sp-rerank", "replay", "run", "0"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code


def test_a_repository_in_the_cache_needs_no_network(checkpoint, tmp_path):
    """In a process of its own: the cache's place is read when huggingface_hub is imported."""
    import os
    import subprocess
    import sys

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--somebody--something"
    shutil.copytree(checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    command = [sys.executable, "-m", "sp_rerank", "generate", "a lemon", "--model", "somebody/something", "--json"]
    done = subprocess.run(
        [*command, "--scorer", "brightness", "--n", "2", "--top-k", "1", "--steps", "1"],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path), "DIFFUSERS_DISABLE_REMOTE_CODE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    config = json.loads((tmp_path / result["run"] / "run.json").read_text())
    assert (config["model"], config["revision"]) == ("somebody/something", commit)
