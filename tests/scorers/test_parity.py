"""Scores of published networks, small and random, against their original code: files in, scores out."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import image_transform
from parity.difference import as_originals_read, difference
from parity.full_size import VIT_H
from PIL import Image
from support.originals import randomize
from transformers import CLIPConfig, CLIPModel

from sp_rerank.scorers import load_scorer
from sp_rerank.scorers.convert import build_dual_encoder, convert, from_open_clip, from_transformers
from sp_rerank.scorers.published import PUBLISHED

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"
HPS = json.loads((GOLDEN / "hps.json").read_text(encoding="utf-8"))

PROMPTS = [*HPS["prompts"].values()]

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))


def shrink(name: str, described: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **preprocess: Any) -> None:
    """Let the row of this name be a small network."""
    row = PUBLISHED[name]
    size = {"size": described["vision_cfg"]["image_size"]}
    monkeypatch.setitem(PUBLISHED, name, replace(row, preprocess=row.preprocess | size | preprocess))
    monkeypatch.setattr(open_clip, "get_model_config", lambda architecture: described)


@pytest.mark.parametrize(("name", "antialias"), [("hps-v2", False), ("hps-v2.1", True)])
def test_hps_v2_scores_as_hpsv2x(name: str, antialias: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shrink(name, HPS["architecture"], monkeypatch, antialias=antialias)
    state = safetensors.torch.load_file(GOLDEN / "hps.safetensors")
    embedding = torch.zeros(49408, state["token_embedding.rows"].shape[1])
    embedding[state.pop("token_embedding.used")] = state.pop("token_embedding.rows")
    file = tmp_path / PUBLISHED[name].files[0]
    torch.save({"state_dict": {**state, "token_embedding.weight": embedding}}, file)
    scorer = load_scorer(f"sp@{convert(file, name)}")
    theirs = HPS["scores" if antialias else "scores without antialias"]
    images = [as_originals_read(Image.open(GOLDEN / "images" / f"hps_{image}.png")) for image in theirs]
    ours = np.stack([scorer.score(prompt, images) for prompt in PROMPTS], axis=1)
    label = name if antialias else f"{name}, antialias off"
    assert difference(label, "hpsv2x 1.2.0", ours, [*theirs.values()]) <= 1e-4
    beyond = [Image.open(GOLDEN / "images" / f"hps_{image}.png") for image in HPS["failed"]]
    assert scorer.score("a lemon", beyond).isfinite().all()  # on these the original stops with an error


@pytest.mark.parametrize("name", ["clip-l", "clip-h", "hps-v1"])
def test_clip_scores_as_open_clip(
    name: str, pictures: Sequence[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    described = TINY | {"quick_gelu": PUBLISHED[name].architecture.endswith("quickgelu")}
    shrink(name, described, monkeypatch)
    vision, text = CLIPVisionCfg(**TINY["vision_cfg"]), CLIPTextCfg(**TINY["text_cfg"])
    theirs = CLIP(16, vision, text, quick_gelu=described["quick_gelu"]).eval()
    randomize(theirs)
    file = tmp_path / PUBLISHED[name].files[0]
    if file.suffix == ".safetensors":
        safetensors.torch.save_file(theirs.state_dict(), file)
    else:
        torch.save({"state_dict": theirs.state_dict()}, file)
    transform: Any = image_transform(64, is_train=False)
    with torch.no_grad():
        embedded = theirs.encode_image(torch.stack([transform(image) for image in pictures]), normalize=True)
        expected = embedded @ theirs.encode_text(open_clip.tokenize(PROMPTS), normalize=True).T
    scorer = load_scorer(f"sp@{convert(file, name)}")
    ours = np.stack([scorer.score(prompt, pictures) for prompt in PROMPTS], axis=1)
    assert difference(name, "open_clip 3.3", ours, expected) <= 1e-4


@pytest.mark.parametrize("name", ["hps-v1", "hps-v2.1", "pickscore"])
def test_the_full_architecture_has_the_published_names_and_shapes(name: str):
    row = PUBLISHED[name]
    described: Any = open_clip.get_model_config(row.architecture)
    with torch.device("meta"):
        if row.form == "transformers":
            state = from_transformers(CLIPModel(CLIPConfig(**VIT_H)).state_dict())
        else:
            vision, text = CLIPVisionCfg(**described["vision_cfg"]), CLIPTextCfg(**described["text_cfg"])
            state = from_open_clip(CLIP(described["embed_dim"], vision, text).state_dict())
    encoder = build_dual_encoder(state, described, row, "nowhere")
    millions = sum(value.numel() for value in encoder.state_dict().values()) / 1e6
    assert round(millions) == (428 if "ViT-L" in row.architecture else 986)
    assert encoder.config["quick_gelu"] == ("ViT-L" in row.architecture)
    assert encoder.clip.context_length == 77
