"""Prompts that image files tell: A1111, ComfyUI, InvokeAI, ours, a text beside; unknown and damaged ones are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sp_rerank.storage import images
from sp_rerank.storage.embedded_prompts import embedded_prompt

INFOTEXT = (
    "a lemon, (beach:1.2)\nin two lines\nNegative prompt: blurry\nugly\n"
    'Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x512, Model: x, Hashes: {"model": "1"}'
)
PROMPT = "a lemon, (beach:1.2)\nin two lines"


def png(path: Path, **texts: str) -> Path:
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def exif_comment(text: str, order: str) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode(order)
    return exif


def node(kind: str, **inputs: object) -> dict[str, object]:
    return {"class_type": kind, "inputs": inputs}


BASIC = {
    "3": node("KSampler", seed=1, positive=["6", 0], negative=["7", 0], model=["4", 0], latent_image=["5", 0]),
    "4": node("CheckpointLoaderSimple", ckpt_name="sd.safetensors"),
    "5": node("EmptyLatentImage", width=512, height=512),
    "6": node("CLIPTextEncode", text="a lemon", clip=["4", 1]),
    "7": node("CLIPTextEncode", text="blurry", clip=["4", 1]),
    "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
    "9": node("SaveImage", images=["8", 0], filename_prefix="ComfyUI"),
}
FLUX = {
    "1": node("SamplerCustomAdvanced", guider=["2", 0], noise=["9", 0]),
    "2": node("BasicGuider", conditioning=["3", 0], model=["8", 0]),
    "3": node("FluxGuidance", conditioning=["4", 0], guidance=3.5),
    "4": node("CLIPTextEncode", text=["5", 0]),
    "5": node("PrimitiveString", value="a pear"),
    "7": node("SaveImage", images=["1", 0]),
    "8": node("UNETLoader", unet_name="flux"),
    "9": node("RandomNoise", noise_seed=1),
}
TWO_PASSES = {
    **{name: entry for name, entry in BASIC.items() if name != "9"},
    "10": node("KSampler", positive=["11", 0], negative=["7", 0], latent_image=["3", 0], model=["4", 0]),
    "11": node("CLIPTextEncode", text="a lemon, sharp", clip=["4", 1]),
    "12": node("SaveImage", images=["13", 0]),
    "13": node("VAEDecode", samples=["10", 0]),
}
LOOP = {"1": node("KSampler", positive=["2", 0]), "2": node("Reroute", conditioning=["2", 0])}
FOREIGN = {"1": node("KSampler", positive=["2", 0]), "2": node("SomebodysNode", words=["a", "b"])}


@pytest.mark.parametrize(
    ("graph", "expected"),
    [(BASIC, "a lemon"), (FLUX, "a pear"), (TWO_PASSES, "a lemon, sharp"), (LOOP, None), (FOREIGN, None), ({}, None)],
    ids=["basic", "flux", "two passes", "loop", "unknown nodes", "empty"],
)
def test_a_graph_of_comfyui(tmp_path, graph, expected):
    assert embedded_prompt(png(tmp_path / "a.png", prompt=json.dumps(graph), workflow="{}")) == expected


def test_parameters_of_automatic1111(tmp_path):
    assert embedded_prompt(png(tmp_path / "a.png", parameters=INFOTEXT)) == PROMPT
    assert embedded_prompt(png(tmp_path / "b.png", parameters="only words, no settings")) == "only words, no settings"


@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
@pytest.mark.parametrize(("suffix", "name"), [("jpg", "JPEG"), ("webp", "WEBP")])
def test_parameters_in_exif(tmp_path, order, suffix, name):
    text = INFOTEXT.replace("lemon", "檸檬")
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (8, 8)).save(path, name, exif=exif_comment(text, order))
    assert embedded_prompt(path) == PROMPT.replace("lemon", "檸檬")


def test_a_webp_file_of_comfyui(tmp_path):
    exif = Image.Exif()
    exif[0x0110] = f"prompt:{json.dumps(BASIC)}"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=exif)
    assert embedded_prompt(tmp_path / "a.webp") == "a lemon"


def test_metadata_of_invokeai(tmp_path):
    three = json.dumps({"positive_prompt": "a lemon", "negative_prompt": "blurry", "seed": 1})
    assert embedded_prompt(png(tmp_path / "a.png", invokeai_metadata=three)) == "a lemon"
    for prompt in ("a lemon", [{"prompt": "a lemon", "weight": 1}]):
        two = json.dumps({"model": "stable diffusion", "image": {"prompt": prompt}})
        assert embedded_prompt(png(tmp_path / "b.png", **{"sd-metadata": two})) == "a lemon"


def test_an_image_of_ours(tmp_path):
    own = images.encode(Image.new("RGB", (8, 8)), parameters="other", record={"prompt": "a lemon"})
    (tmp_path / "a.png").write_bytes(own)
    assert embedded_prompt(tmp_path / "a.png") == "a lemon"


def test_a_text_beside_the_image_counts_where_the_image_says_nothing(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).with_suffix(".txt").write_text("\ufeffwords beside\n", encoding="utf-8")
    assert embedded_prompt(png(tmp_path / "a.png")) == "words beside"
    assert embedded_prompt(png(tmp_path / "b.png", parameters=INFOTEXT)) == PROMPT
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "d.txt").write_text("  \n")
    assert [embedded_prompt(png(tmp_path / f"{name}.png")) for name in "cde"] == [None] * 3


@pytest.mark.parametrize(
    "texts",
    [
        {"Description": "a lemon", "Software": "NovelAI"},
        {"parameters": json.dumps({"prompt": "a lemon", "fooocus_scheme": "v2"})},
        {"prompt": "just words"},
        {"prompt": '{"1": 7, "2": {"inputs": 3}}'},
        {"prompt": "[" * 100_000},
        {"invokeai_metadata": '{"positive_prompt": 7}'},
        {"sd-metadata": '{"image": {"prompt": [{"prompt": "a"}, {"prompt": "b"}]}}'},
        {"sp_rerank": "{"},
        {"parameters": "Negative prompt: blurry\nSteps: 20, Sampler: Euler"},
        {"parameters": "   "},
    ],
    ids=lambda texts: "-".join(texts),
)
def test_unknown_tools_and_damaged_metadata_are_no_prompt(tmp_path, texts):
    assert embedded_prompt(png(tmp_path / "a.png", **texts)) is None


def test_a_file_that_is_no_image_has_no_prompt(tmp_path):
    for name, content in (("a.png", b"\x89PNG\r\n\x1a\nrest"), ("b.jpg", b"")):
        (tmp_path / name).write_bytes(content)
        assert embedded_prompt(tmp_path / name) is None
    assert embedded_prompt(tmp_path / "missing.png") is None


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(["prompt", "parameters", "sd-metadata", "sp_rerank"]), st.text(max_size=80)))
def test_no_metadata_raises(tmp_path_factory, texts):
    found = embedded_prompt(png(tmp_path_factory.mktemp("any") / "a.png", **texts))
    assert found is None or found.strip()
