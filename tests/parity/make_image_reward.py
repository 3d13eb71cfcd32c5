"""Scores of the original ImageReward, and of its network with BLIP's matching head, for tests/scorers to compare with.

    python tests/parity/make_image_reward.py        # writes golden/image_reward.json beside this file

Run with an environment in which image-reward 1.5 works (Python 3.11, transformers 4.45, timm 0.6, fairscale 0.4,
accelerate < 1, openai-clip); sp_rerank need not be there.

The original's own classes are built in a small size; nothing of a hub is read. Weights and images are integers of
numpy's frozen RandomState, made on both sides by the functions below, so that neither need be stored: the golden file
holds names and shapes of the weights, checksums of the images, and what the original made of them.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GOLDEN = Path(__file__).with_name("golden") / "image_reward.json"
HEAD_WIDTH = 16

_PIECES = """
[PAD] [UNK] [CLS] [SEP] [MASK] ! " & , . ; < > ( ) - ' 日 本 語 a b i n o s t ##a ##b ##i ##n ##o ##s ##t ##ing ##es
##glass ##board lemon wear sun sunglasses on the beach teddy bear and skate in grass naive cafe amp man woman painting
of ocean with clouds two cats dog red blue
"""
VOCABULARY = [*dict.fromkeys(_PIECES.split())]

PROMPTS = {
    "empty": "",
    "plain": "A lemon, wearing Sunglasses on the beach",
    "emoji": "🍋😎 on the 🏖️, naïve café 日本語 &amp; <b>",
    "special tokens": "a lemon [SEP] on [ENC] the [MASK] beach [DEC]",
    "exactly 35": " ".join(["lemon"] * 33),
    "36, the last is lost": " ".join(["lemon"] * 33) + " beach",
    "cut in a word": " ".join(["bear"] * 32) + " lemons sunglasses",
    "5,000 characters": "sunglasses " * 454 + "beach.",
}


def weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Float32 weights for these names and shapes, wide enough for every part of the network to move the score."""
    rng = np.random.RandomState(20230412)
    made = {}
    for key in sorted(shapes):
        shape = shapes[key]
        values = rng.randint(-1000, 1001, size=shape) / 1000.0
        if key.endswith((".bias", "cls_token", "pos_embed")):
            values = values * 0.2
        elif len(shape) == 1:  # gains of layer norms
            values = 1 + values * 0.3
        elif "embeddings" not in key:
            values = values * 2.5 / np.sqrt(np.prod(shape[1:]))
        made[key] = values.astype(np.float32)
    return made


def images() -> dict[str, Image.Image]:
    """Small images of every kind that a folder may hold."""
    rng = np.random.RandomState(7)

    def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
        coarse = rng.randint(0, 256, (-(-height // 7), -(-width // 7), channels)).repeat(7, 0).repeat(7, 1)
        fine = rng.randint(-40, 41, (height, width, channels))
        return np.clip(coarse[:height, :width] + fine, 0, 255).astype(np.uint8)

    palette = Image.fromarray(rng.randint(0, 16, (60, 75)).astype(np.uint8), "P")
    palette.putpalette(rng.randint(0, 256, 768).astype(np.uint8).tobytes())
    turned, tag = io.BytesIO(), Image.Exif()
    tag[0x0112] = 6
    Image.fromarray(noise(120, 90)).save(turned, "PNG", exif=tag)
    return {
        "224x224": Image.fromarray(noise(224, 224)),
        "301x217": Image.fromarray(noise(301, 217)),
        "63x65": Image.fromarray(noise(63, 65)),
        "grey": Image.fromarray(noise(99, 80, 1)[..., 0]),
        "1x1": Image.fromarray(noise(1, 1)),
        "1x1000": Image.fromarray(noise(1, 1000)),
        "1000x1": Image.fromarray(noise(1000, 1)),
        "turned by EXIF": Image.open(turned),
        "rgba": Image.fromarray(noise(80, 99, 4), "RGBA"),
        "palette": palette,
        "230x600": Image.fromarray(noise(230, 600)),
    }


AS_IT_IS = ("rgba", "palette", "230x600")
"""Images which the original resizes in another way; it also gets them in a form in which that makes no difference."""


def without_difference(image: Image.Image) -> Image.Image:
    """RGB; and where Pillow 13 would resize the vertical axis first, already resized, the horizontal one first."""
    rgb = image.convert("RGB")
    if rgb.height <= 2 * rgb.width:
        return rgb
    resized = rgb.resize((224, rgb.height), Image.Resampling.BICUBIC)
    return resized.resize((224, int(224 * rgb.height / rgb.width)), Image.Resampling.BICUBIC)


def checksum(image: Image.Image) -> str:
    """Of the pixels as RGBA, and of the size."""
    return hashlib.sha256(image.convert("RGBA").tobytes() + repr(image.size).encode()).hexdigest()[:16]


_FULL = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
_FULL |= {"max_position_embeddings": 512, "vocab_size": 30524}
_SMALL = {"hidden_size": 32, "intermediate_size": 80, "num_attention_heads": 2, "num_hidden_layers": 2}
_SMALL |= {"max_position_embeddings": 40, "vocab_size": len(VOCABULARY) + 2}


def _configure(folder: Path, sizes: dict[str, int]) -> str:
    """What the original reads: a vocabulary in place of the hub's, and the path of its med_config.json."""
    from ImageReward.models.BLIP import blip
    from transformers import BertTokenizer

    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    blip.BertTokenizer.from_pretrained = lambda _: BertTokenizer(str(folder / "vocab.txt"))
    fixed = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0, "add_cross_attention": True}
    (folder / "med_config.json").write_text(json.dumps(sizes | fixed), encoding="utf-8")
    return str(folder / "med_config.json")


def _full_shapes(folder: Path) -> dict[str, list[int]]:
    """Names and shapes of the published size, without the memory for it."""
    from accelerate import init_empty_weights
    from ImageReward import ImageReward

    with init_empty_weights(include_buffers=False):
        model = ImageReward(_configure(folder, _FULL))
    return {key: list(value.shape) for key, value in model.state_dict().items()}


def _original(folder: Path) -> Any:
    """The original network in a small size."""
    from importlib import import_module

    from ImageReward.models.BLIP import blip_pretrain
    from ImageReward.models.BLIP.vit import VisionTransformer

    module = import_module("ImageReward.ImageReward")  # the package hides it behind the class of that name

    def small_tower(*_: Any) -> tuple[Any, int]:
        return VisionTransformer(img_size=224, patch_size=32, embed_dim=48, depth=2, num_heads=3), 48

    mlp = module.MLP
    blip_pretrain.create_vit = small_tower
    module.MLP = lambda _: mlp(32)
    return module.ImageReward(_configure(folder, _SMALL)).eval()


def _matching(model: Any, head: Any, prompt: str, image: Image.Image) -> list[float]:
    """Both logits of image-text matching, in the steps of BLIP's train_retrieval.py."""
    import torch

    blip = model.blip
    text = blip.tokenizer(prompt, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    ids = text.input_ids.clone()
    ids[:, 0] = blip.tokenizer.enc_token_id
    seen = blip.visual_encoder(model.preprocess(image)[None])
    read = blip.text_encoder(
        ids,
        attention_mask=text.attention_mask,
        encoder_hidden_states=seen,
        encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long),
        return_dict=True,
    )
    return head(read.last_hidden_state[:, 0])[0].tolist()


def main() -> None:
    """Build, fill, score, write."""
    import tempfile
    from importlib.metadata import version

    import torch

    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        full_shapes = _full_shapes(Path(folder))
        model = _original(Path(folder))
    head = torch.nn.Linear(32, 2)
    state = model.state_dict() | {f"itm_head.{key}": value for key, value in head.state_dict().items()}
    shapes = {key: list(value.shape) for key, value in state.items() if value.is_floating_point()}
    filled = {key: torch.from_numpy(value) for key, value in weights(shapes).items()}
    head.load_state_dict({key.split(".")[1]: filled.pop(key) for key in ("itm_head.weight", "itm_head.bias")})
    left = model.load_state_dict(filled, strict=False)
    assert left.missing_keys == ["blip.text_encoder.embeddings.position_ids"] and not left.unexpected_keys, left

    pictures = images()
    given = {name: without_difference(image) if name in AS_IT_IS else image for name, image in pictures.items()}
    golden = {
        "made_with": {
            package: version(package)
            for package in ("image-reward", "transformers", "torch", "torchvision", "pillow", "timm", "numpy")
        },
        "full_shapes": full_shapes,
        "shapes": shapes,
        "counted_positions": "blip.text_encoder.embeddings.position_ids",
        "vocabulary": model.blip.tokenizer.convert_ids_to_tokens(range(len(model.blip.tokenizer))),
        "prompts": PROMPTS,
        "images": {name: checksum(image) for name, image in pictures.items()},
        "ids": {
            name: model.blip.tokenizer(text, padding="max_length", truncation=True, max_length=35).input_ids
            for name, text in PROMPTS.items()
        },
        "reward": {p: {i: model.score(text, image) for i, image in given.items()} for p, text in PROMPTS.items()},
        "reward_as_it_is": {
            p: {name: model.score(text, pictures[name]) for name in AS_IT_IS} for p, text in PROMPTS.items()
        },
        "matching": {
            p: {i: _matching(model, head, text, image) for i, image in given.items()} for p, text in PROMPTS.items()
        },
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in golden.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
