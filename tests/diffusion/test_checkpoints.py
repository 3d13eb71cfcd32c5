"""Checkpoints as artists have them: one file, half precision, LoRAs, textual inversions; each is part of the run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.single_files import save_embedding, save_lora, save_single_file
from support.tiny import build_sd_pipeline, build_sdxl

from sp_rerank import cli, generate, load_pipeline
from sp_rerank.config import CheckpointOptions, Provenance, RunConfig
from sp_rerank.config.checkpoint import Embedding, Lora
from sp_rerank.diffusion import loading
from sp_rerank.diffusion.placement import device_of, provenance_of
from sp_rerank.errors import HubUnavailableError, OptionError, StorageError, UsageError
from sp_rerank.pipelines import best_of_n
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.storage.atomic import sha256_of

WIDTH = 32  # of the attention of tiny Stable Diffusion


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    build_sd_pipeline().save_pretrained(path)
    return path


@pytest.fixture
def lora(tmp_path) -> str:
    return str(save_lora(tmp_path / "style.safetensors", WIDTH))


def pixels(pipe, prompt: str = "a lemon", **more) -> torch.Tensor:
    noise = torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=2, generator=noise, output_type="pt", **more).images


def run(pipe, out: Path | None = None, prompt: str = "a lemon", **more):
    return generate(prompt, pipe=pipe, scorer=BrightnessScorer(), n=2, top_k=1, steps=2, out=out, **more)


def command(monkeypatch, folder: Path, *words: str) -> int:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["sp-rerank", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


# One file


def test_a_single_file_is_the_model_that_was_saved(folder, tmp_path):
    file = save_single_file(build_sd_pipeline(), tmp_path / "whole.safetensors")
    pipe = load_pipeline(str(file), base=str(folder))
    assert torch.equal(pixels(pipe), pixels(load_pipeline(str(folder))))
    made = provenance_of(pipe)
    assert (made.base, made.sha256) == (str(folder), sha256_of(file))
    assert loading.model_of(pipe) == str(file)


def test_a_single_file_without_a_configuration_says_what_it_needs(tmp_path):
    file = save_single_file(build_sd_pipeline(), tmp_path / "whole.safetensors")
    with pytest.raises(HubUnavailableError, match=r"weights only, and needs a configuration .*give the folder") as said:
        load_pipeline(str(file))
    assert "\n" not in str(said.value)


def test_a_single_file_that_lacks_weights_is_refused(folder, tmp_path):
    file = save_single_file(build_sd_pipeline(), tmp_path / "whole.safetensors")
    state = safetensors.torch.load_file(file)
    safetensors.torch.save_file({key: value for key, value in state.items() if "out.2.bias" not in key}, file)
    with pytest.raises(StorageError, match=r"conv_out\.bias|cannot be loaded"):
        load_pipeline(str(file), base=str(folder))


@pytest.mark.parametrize(
    ("name", "more", "complaint"),
    [
        ("model.ckpt", {}, "may run code when it is read; expected a file NAME.safetensors"),
        ("model.safetensors", {"base": "nowhere"}, "base is 'nowhere'|OWNER/NAME|needs a configuration"),
        ("model.safetensors", {"variant": "fp16"}, "variant is 'fp16'; expected none: a model that is a file"),
    ],
)
def test_files_that_are_refused(tmp_path, name, more, complaint):
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / name)
    with pytest.raises((UsageError, HubUnavailableError), match=complaint):
        load_pipeline(str(tmp_path / name), **more)


def test_a_folder_has_its_own_configuration(folder):
    with pytest.raises(OptionError, match="only a model that is a file needs a configuration"):
        load_pipeline(str(folder), base=str(folder))


# Variants


def test_a_folder_of_half_precision_only_is_read(folder, tmp_path):
    build_sd_pipeline().to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    pipe = load_pipeline(str(tmp_path / "half"))
    assert provenance_of(pipe).variant == "fp16"
    assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.float32
    difference = (pixels(pipe) - pixels(load_pipeline(str(folder)))).abs().max()
    assert 0 < difference < 0.05


def test_a_variant_is_taken_where_it_is_asked_for(folder, tmp_path):
    both = shutil.copytree(folder, tmp_path / "both")
    build_sd_pipeline().to(torch.float16).save_pretrained(both, variant="fp16")
    plain, half = load_pipeline(str(both)), load_pipeline(str(both), variant="fp16")
    assert (provenance_of(plain).variant, provenance_of(half).variant) == (None, "fp16")
    assert torch.equal(pixels(plain), pixels(load_pipeline(str(folder))))
    assert not torch.equal(pixels(plain), pixels(half))
    with pytest.raises(UsageError, match=r"variant is 'bf16'; .*both has fp16"):
        load_pipeline(str(both), variant="bf16")
    with pytest.raises(UsageError, match="plain weights only"):
        load_pipeline(str(folder), variant="fp16")


# LoRAs


def test_a_lora_changes_the_image_by_its_weight(folder, lora):
    plain = pixels(load_pipeline(str(folder)))
    full, half, none = (pixels(load_pipeline(str(folder), loras=[f"{lora}{w}"])) for w in ("", ":0.5", ":0"))
    assert torch.equal(none, plain)
    assert 0 < (half - plain).abs().max() < (full - plain).abs().max()


def test_several_loras_count_each_with_its_weight(folder, lora, tmp_path):
    other = save_lora(tmp_path / "other.safetensors", WIDTH, blocks="up_blocks.0.attentions.0")
    both = pixels(load_pipeline(str(folder), loras=[lora, f"{other}:2"]))
    first = pixels(load_pipeline(str(folder), loras=[lora, f"{other}:0"]))
    assert torch.equal(first, pixels(load_pipeline(str(folder), loras=[lora])))
    assert not torch.equal(first, both)


@pytest.mark.parametrize(
    ("width", "blocks"),
    [(WIDTH + 8, "down_blocks.1.attentions.0"), (WIDTH, "down_blocks.3.attentions.0"), (WIDTH, "x.double_blocks.0")],
)
def test_a_lora_for_another_base_is_one_line(folder, tmp_path, width, blocks):
    file = save_lora(tmp_path / "other.safetensors", width, blocks=blocks)
    with pytest.raises(UsageError, match=r"the LoRA .*other.safetensors is for another base than this Stable") as said:
        load_pipeline(str(folder), loras=[str(file)])
    assert "\n" not in str(said.value)


def test_a_lora_of_which_a_part_has_no_place_is_refused(folder, tmp_path):
    """diffusers warns and loads the rest."""
    states = [
        safetensors.torch.load_file(save_lora(tmp_path / "part.safetensors", WIDTH, blocks=blocks))
        for blocks in ("down_blocks.1.attentions.0", "down_blocks.7.attentions.0")
    ]
    safetensors.torch.save_file(states[0] | states[1], tmp_path / "part.safetensors")
    with pytest.raises(UsageError, match=r"another base than this .*: 1 of its 2 layers"):
        load_pipeline(str(folder), loras=[str(tmp_path / "part.safetensors")])


def test_files_that_are_no_lora(folder, tmp_path):
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(StorageError, match=r"LoRA .*torn\.safetensors is damaged"):
        load_pipeline(str(folder), loras=[str(tmp_path / "torn.safetensors")])
    with pytest.raises(UsageError, match=r"LoRA 'absent\.safetensors': expected a file"):
        load_pipeline(str(folder), loras=["absent.safetensors"])


# Textual inversions


def test_a_textual_inversion_is_a_word(folder, tmp_path):
    file = save_embedding(tmp_path / "a toy.safetensors")
    pipe = load_pipeline(str(folder), embeddings=[str(file)])
    assert provenance_of(pipe).embeddings == ({"file": str(file), "sha256": sha256_of(file), "token": "<toy>"},)
    plain = load_pipeline(str(folder))
    assert torch.equal(pixels(pipe), pixels(plain))
    assert not torch.equal(pixels(pipe, "a <toy>"), pixels(plain, "a <toy>"))
    named = load_pipeline(str(folder), embeddings=[f"{file}:my-toy"])
    assert torch.equal(pixels(named, "a my-toy"), pixels(pipe, "a <toy>"))


def test_a_file_of_another_program_is_named_by_its_file(folder, tmp_path):
    file = save_embedding(tmp_path / "old toy.safetensors", "emb_params")
    assert provenance_of(load_pipeline(str(folder), embeddings=[str(file)])).embeddings[0]["token"] == "old-toy"


@pytest.mark.parametrize(
    ("key", "width", "text", "complaint"),
    [
        ("<toy>", 48, "", "is for another base than this StableDiffusionPipeline: expected one of 32 numbers"),
        ("<toy>", 32, ":lemon</w>", "cannot be added as 'lemon</w>'"),
    ],
)
def test_textual_inversions_that_are_refused(folder, tmp_path, key, width, text, complaint):
    file = save_embedding(tmp_path / "toy.safetensors", key, width)
    with pytest.raises(UsageError, match=complaint):
        load_pipeline(str(folder), embeddings=[f"{file}{text}"])


@pytest.mark.filterwarnings("ignore")  # of Euler's scheduler
def test_a_textual_inversion_of_stable_diffusion_xl_is_learned_by_both_encoders(tmp_path):
    build_sdxl().save_pretrained(tmp_path / "xl")
    file, noise = tmp_path / "toy.safetensors", torch.Generator().manual_seed(1)
    vectors = {key: torch.randn(2, 32, generator=noise) for key in ("clip_l", "clip_g")}
    safetensors.torch.save_file(vectors, file)
    pipe, plain = load_pipeline(str(tmp_path / "xl"), embeddings=[f"{file}:<toy>"]), load_pipeline(str(tmp_path / "xl"))
    by_hand = load_pipeline(str(tmp_path / "xl"))  # as diffusers' guide does it
    for key, encoder, tokenizer in (
        ("clip_l", by_hand.text_encoder, by_hand.tokenizer), ("clip_g", by_hand.text_encoder_2, by_hand.tokenizer_2),
    ):  # fmt: skip
        by_hand.load_textual_inversion(vectors[key], token="<toy>", text_encoder=encoder, tokenizer=tokenizer)
    assert torch.equal(pixels(pipe, "a <toy>"), pixels(by_hand, "a <toy>"))
    assert not torch.equal(pixels(pipe, "a <toy>"), pixels(plain, "a <toy>"))
    made = generate("a <toy>", pipe=pipe, scorer=BrightnessScorer(), n=2, top_k=2, steps=2)
    expected = generate("a <toy>", pipe=by_hand, scorer=BrightnessScorer(), n=2, top_k=2, steps=2)
    assert [entry.score for entry in made] == [entry.score for entry in expected]
    with pytest.raises(UsageError, match="expected clip_l of 32 numbers and clip_g"):
        load_pipeline(str(tmp_path / "xl"), embeddings=[str(save_embedding(tmp_path / "one.safetensors"))])


# The run


def test_what_was_added_is_part_of_the_run(folder, lora, tmp_path):
    toy = save_embedding(tmp_path / "toy.safetensors")
    pipe = load_pipeline(str(folder), loras=[f"{lora}:0.5"], embeddings=[str(toy)])
    run(pipe, tmp_path / "run", "a <toy>")
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert stored["provenance"] == {
        "loras": [{"file": lora, "sha256": sha256_of(Path(lora)), "weight": 0.5}],
        "embeddings": [{"file": str(toy), "sha256": sha256_of(toy), "token": "<toy>"}],
    }
    again = load_pipeline(str(folder), loras=[f"{lora}:0.5"], embeddings=[str(toy)])
    run(again, tmp_path / "run", "a <toy>", resume=True)
    for other in ({}, {"loras": [lora]}, {"loras": [f"{lora}:0.5"]}):
        with pytest.raises(UsageError, match=r"loras is|embeddings is"):
            run(load_pipeline(str(folder), **other), tmp_path / "run", "a <toy>", resume=True)


def test_a_run_without_additions_is_written_as_ever(folder, tmp_path):
    run(load_pipeline(str(folder)), tmp_path / "run")
    assert "provenance" not in json.loads((tmp_path / "run" / "run.json").read_text())


def test_the_class_that_chooses_knows_what_was_added(folder, lora):
    pipe = load_pipeline(str(folder), loras=[lora])
    ours = best_of_n(pipe, scorer=BrightnessScorer())
    assert provenance_of(ours) == provenance_of(pipe) != Provenance()
    ours.set_progress_bar_config(disable=True)
    assert torch.equal(pixels(ours), pixels(pipe))


def test_the_command_makes_resumes_and_replays(folder, lora, tmp_path, monkeypatch, capsys):
    toy = save_embedding(tmp_path / "toy.safetensors")
    words = ["generate", "a <toy>", "--model", str(folder), "--scorer", "brightness", "-n", "2", "-k", "1"]
    words += ["--steps", "2", "--lora", f"{lora}:0.5", "--embedding", str(toy), "-o", "run"]
    assert command(monkeypatch, tmp_path, *words) == 0
    assert command(monkeypatch, tmp_path, *words, "--resume") == 0
    assert command(monkeypatch, tmp_path, "replay", "run", "0") == 0
    assert "every pixel is the same" in capsys.readouterr().out
    save_lora(Path(lora), WIDTH, scale=1.0)
    assert command(monkeypatch, tmp_path, "replay", "run", "0") == 2
    assert "style.safetensors of run changed since it was made" in capsys.readouterr().err
    assert command(monkeypatch, tmp_path, *words, "--resume") == 2
    assert "--offload" not in capsys.readouterr().err
    assert command(monkeypatch, tmp_path, *words[:-1], "other", "--offload") == 2
    assert "--offload is True; expected an accelerator" in capsys.readouterr().err


def test_the_command_takes_a_file(folder, tmp_path, monkeypatch, capsys):
    file = save_single_file(build_sd_pipeline(), tmp_path / "whole.safetensors")
    words = ["generate", "a lemon", "--model", file.name, "--scorer", "brightness", "-n", "2", "-k", "1"]
    assert command(monkeypatch, tmp_path, *words, "--steps", "2", "--base", str(folder), "-o", "run") == 0
    assert command(monkeypatch, tmp_path, "replay", "run", "0") == 0
    assert "every pixel is the same" in capsys.readouterr().out
    safetensors.torch.save_file({k: v * 1.01 for k, v in safetensors.torch.load_file(file).items()}, file)
    assert command(monkeypatch, tmp_path, "replay", "run", "0") == 2
    assert "the model of run changed since it was made" in capsys.readouterr().err


# Values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", Lora("a.safetensors")),
        ("a.safetensors:0.8", Lora("a.safetensors", 0.8)),
        ("C:\\a.safetensors", Lora("C:\\a.safetensors")),
        ("C:\\a.safetensors:-1", Lora("C:\\a.safetensors", -1.0)),
    ],
)
def test_the_words_for_a_lora(text, expected):
    assert Lora.parse(text) == expected


@pytest.mark.parametrize("text", ["a.pt", "a.safetensors:nan", "a.safetensors:much", "", ":1"])
def test_words_that_are_no_lora(text):
    with pytest.raises(OptionError, match=r"loras is .*; expected FILE.safetensors or"):
        CheckpointOptions(loras=[text])


def test_the_words_for_a_textual_inversion():
    assert Embedding.parse("a.safetensors") == Embedding("a.safetensors")
    assert Embedding.parse("C:\\a.safetensors:<toy>") == Embedding("C:\\a.safetensors", "<toy>")
    for text in ("a.pt", "a.safetensors:two words", "a.safetensors:"):
        with pytest.raises(OptionError, match=r"embeddings is .*; expected FILE.safetensors or"):
            CheckpointOptions(embeddings=[text])
    with pytest.raises(OptionError, match=r"loras is 'style\.safetensors'; expected a list of texts"):
        CheckpointOptions(loras="style.safetensors")


def test_provenance_is_read_as_it_was_written():
    lora = {"file": "a.safetensors", "sha256": "0" * 64, "weight": 1.0}
    made = Provenance(variant="fp16", loras=(lora,), offload=True)
    config = RunConfig(n=1, provenance=made)
    assert RunConfig.from_json(config.to_json()) == config
    assert made.options() == CheckpointOptions(variant="fp16", loras=["a.safetensors:1.0"], offload=True, embeddings=[])
    for record in ({"loras": [{"file": 1}]}, {"magic": 1}, {"offload": "yes"}, [], {"loras": "a"}):
        with pytest.raises(UsageError, match="provenance is"):
            RunConfig.from_json({"n": 1, "provenance": record})


def test_where_models_wait_is_no_part_of_what_an_image_is():
    config = RunConfig(n=1, provenance=Provenance(offload=True))
    assert config.differences(RunConfig(n=1)) == []
    assert config.of_any_size() == RunConfig(n=1)


# Offloading


def test_offloading_takes_the_place_of_moving(folder, monkeypatch):
    """There is no accelerator in these tests: what diffusers would do with one is left to it."""
    calls = []

    def offload(pipe, device):
        calls.append(device)
        type(pipe)._execution_device = property(lambda _: torch.device(device))

    kind = type(load_pipeline(str(folder)))
    monkeypatch.setattr(kind, "_execution_device", kind._execution_device, raising=False)
    monkeypatch.setattr(kind, "enable_model_cpu_offload", offload)
    pipe = load_pipeline(str(folder), device="cuda", offload=True)
    assert calls == ["cuda"]
    assert pipe.unet.device.type == "cpu"
    assert device_of(pipe).type == "cuda"
    assert provenance_of(pipe).offload
    with pytest.raises(OptionError, match="offload is True; expected an accelerator"):
        load_pipeline(str(folder), offload=True)
