"""SigLIP's towers against open_clip, file to score, in a small size with random weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import image_transform
from parity.difference import difference
from PIL import Image
from support.originals import randomize
from support.pictures import picture
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sp_rerank.errors import StorageError, UsageError
from sp_rerank.rank import rank_files
from sp_rerank.scorers import load_scorer
from sp_rerank.scorers.check import check_scorer
from sp_rerank.scorers.convert import convert
from sp_rerank.scorers.published import PUBLISHED, Published, find
from sp_rerank.scorers.siglip import SigLipEncoder
from sp_rerank.train.model import freeze

HALF = (0.5, 0.5, 0.5)
PROMPTS = ["A lemon, on the beach!", "", "two_cats & dogs", " ".join(["lemon"] * 30)]
PIECES = ("▁lemon", "▁beach", "▁two", "▁cats", "▁", *"abcdefghijklmnopqrstuvwxyz")


@dataclass
class Tiny:
    """open_clip's network, and our scorer of the checkpoint that it wrote."""

    network: Any
    tokenize: HFTokenizer
    ours: Any
    folder: Path

    @torch.no_grad()
    def score(self, prompt: str, file: Path) -> float:
        transform = image_transform(160, False, HALF, HALF, resize_mode="squash", interpolation="bicubic")
        image = Image.open(file).convert("RGB")
        # Pillow until 12 resized the columns last always; 13 turns the order for some images
        pixels = transform(image.resize((160, image.height), Image.Resampling.BICUBIC))[None]
        logits, _ = self.network.get_logits(pixels, self.tokenize([prompt]))
        return logits.item()


def write_tokenizer(folder: Path, end: str, padding: str) -> int:
    """A tokenizer as the hub has it; how many tokens it knows."""
    special = [*dict.fromkeys(("<pad>", end, "<unk>"))]
    vocabulary = [(token, 0.0) for token in special] + [(piece, -float(len(piece) < 3)) for piece in PIECES]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 1)])  # type: ignore
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=padding, unk_token="<unk>")
    fast.save_pretrained(folder)
    return len(vocabulary)


@pytest.fixture(params=[("</s>", "</s>"), ("<eos>", "<pad>")], ids=["siglip", "siglip2"])
def tiny(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    folder = tmp_path / "original"
    size = write_tokenizer(folder, *request.param)
    vision = {"image_size": 160, "timm_model_name": "test_vit", "timm_model_pretrained": False}
    text = {"context_length": 12, "vocab_size": size, "hf_tokenizer_name": str(folder), "width": 32, "heads": 2}
    text |= {"layers": 2, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    described = {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": vision | {"timm_pool": "map", "timm_proj": "none"},
        "text_cfg": text | {"tokenizer_kwargs": {"clean": "canonicalize"}},
    }
    (tmp_path / "tiny-siglip.json").write_text(json.dumps(described))
    open_clip.add_model_config(tmp_path / "tiny-siglip.json")
    network: Any = open_clip.create_model("tiny-siglip", pretrained=None).eval()
    randomize(network)
    safetensors.torch.save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    row = Published(
        name="siglip-tiny",
        summary="",
        size="",
        scale="logit",
        license="none",
        form="siglip",
        files=("open_clip_model.safetensors",),
        architecture="tiny-siglip",
        preprocess={"size": 160, "mean": HALF, "std": HALF, "geometry": "squash"},
        vocabulary=("owner/name", None),
    )
    monkeypatch.setitem(PUBLISHED, row.name, row)
    out = convert(folder / row.files[0], row.name, out=tmp_path / "ours")
    tokenize = HFTokenizer(str(folder), context_length=12, clean="canonicalize")
    return Tiny(network, tokenize, load_scorer(f"sp@{out}"), out)


def test_a_file_has_the_logit_that_open_clip_gives(tiny: Tiny, tmp_path: Path):
    files = []
    for number, (kind, *size) in enumerate(((".png", 640, 427), (".jpg", 101, 180), (".png", 160, 160))):
        files.append(tmp_path / f"{number}{kind}")
        picture("photo", *size, seed=number).convert("RGB").save(files[-1])
    expected = [[tiny.score(prompt, file) for file in files] for prompt in PROMPTS]
    found = []
    for prompt in PROMPTS:
        by_file = {row.file: row.scores[tiny.ours.name] for row in rank_files([tiny.ours], prompt, files).files}
        found.append([by_file[file] for file in files])
    assert np.std(expected, axis=1).min() > 1e-3
    assert difference("clip:*SigLIP*", "open_clip 3.3, from the file", found, expected) <= 1e-4


def test_tokens_are_those_of_open_clip(tiny: Tiny):
    assert tiny.ours.tokenize(PROMPTS).tolist() == tiny.tokenize(PROMPTS).tolist()
    assert (tiny.ours.count_tokens("lemon beach"), tiny.ours.lost_tail("lemon beach")) == (3, "")
    assert tiny.ours.lost_tail("Lemon " * 11 + "BEACH!") == "beach"


def test_it_keeps_the_rules_of_a_scorer_and_can_be_trained(tiny: Tiny, tmp_path: Path):
    check_scorer(tiny.ours)
    tiny.ours.save_pretrained(tmp_path / "again")
    pixels = torch.rand(2, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    again: Any = load_scorer(f"sp@{tmp_path / 'again'}")
    assert again.name == tiny.ours.name
    assert torch.equal(again.score("a lemon", pixels), tiny.ours.score("a lemon", pixels))
    freeze(again, 1, 1)
    learning = {name for name, p in again.named_parameters() if p.requires_grad}
    assert any("trunk.blocks.5." in name for name in learning) and any("trunk.attn_pool" in name for name in learning)
    assert any("text.transformer.resblocks.1." in name for name in learning)
    assert not any(part in name for name in learning for part in ("blocks.4.", "resblocks.0.", "logit_bias"))
    pixels.requires_grad_()
    again("a lemon", pixels, differentiable=True).sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0


def test_a_folder_without_its_tokenizer_is_refused(tiny: Tiny):
    (tiny.folder / "tokenizer.json").write_text("{")
    with pytest.raises(StorageError, match=r"tokenizer\.json: no tokenizer that can be read"):
        load_scorer(f"sp@{tiny.folder}")
    (tiny.folder / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"expected a folder with tokenizer\.json"):
        load_scorer(f"sp@{tiny.folder}")


@pytest.mark.parametrize("trunk", ["hf-hub:someone/something", "local-dir:/tmp/x", "../x", None])
def test_a_place_in_the_configuration_is_refused(trunk: str | None):
    with pytest.raises(UsageError, match="expected the plain name of a network of timm"):
        SigLipEncoder("x", 64, {"image_size": 160, "timm_model_name": trunk}, {}, {"size": 160}, "logit", "", "")


@pytest.mark.parametrize(("name", "size"), [("ViT-B-16-SigLIP", 224), ("ViT-SO400M-16-SigLIP2-384", 384)])
def test_checkpoints_of_open_clip_are_known(name: str, size: int):
    row = find(f"clip:{name}/webli")
    assert row is not None and (row.form, row.repo, row.vocabulary) == (
        "siglip",
        f"timm/{name}",
        (f"timm/{name}", None),
    )
    assert row.preprocess == {"size": size, "mean": list(HALF), "std": list(HALF), "geometry": "squash"}
