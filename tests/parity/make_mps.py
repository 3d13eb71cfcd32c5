"""Scores of the network of MPS, for tests/scorers to compare with.

    PYTHONPATH=tests python tests/parity/make_mps.py        # writes golden/mps.json beside this file

Run with an environment in which imscore 0.0.11 works (Python 3.11, transformers 4.45, einops, open_clip); sp_rerank
need not be there. imscore carries the network of Kwai-Kolors/MPS, which is no package; the steps around it are those
of that repository's eval_overall_mps_on_imagereward.py, in float32. Weights and images are made as in
`make_image_reward`.
"""

from __future__ import annotations

import gzip
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parity.make_image_reward import images, weights

GOLDEN = Path(__file__).with_name("golden") / "mps.json"
EDGE, HEADS = 56, 2
LEFT_OUT = ("1x1", "1x1000", "1000x1", "230x600")
"""The processor fails at an edge of 1, and Pillow 13 resizes the other axis of a high one first."""
PROMPTS = {
    "empty": "",
    "plain": "A lemon, wearing Sunglasses on the beach",
    "emoji": "🍋😎 on the 🏖️, naïve café 日本語 &amp; <b>",
    "quotes": "a “lemon” and a cat’s ｌｅｍｏｎ",
    "exactly 77": " ".join(["lemon"] * 75),
    "cut": " ".join(["lemon", "beach"] * 60),
}
CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": HEADS}
TOWER |= {"hidden_act": "gelu", "projection_dim": 24}


def as_used(shapes: dict[str, list[int]]) -> dict[str, Any]:
    """Weights for these names and shapes; what is no weight, positions and the missing bias, as it is in the file."""
    import numpy as np

    made = weights(shapes)
    for key, value in list(made.items()):
        value = np.asarray(value)
        if key.endswith("inv_freq"):
            made[key] = (1.0 / 10_000 ** (np.arange(0, 2 * len(value), 2) / (2 * len(value)))).astype(np.float32)
        elif "cross_model" in key and key.endswith("norm.bias"):
            made[key] = np.zeros_like(value)
        elif key.endswith("text_model.final_layer_norm.weight"):
            made[key] = value.copy()
            made[key][0] = 30.0  # one direction leads, so that tokens lie on both sides of the threshold
        elif key.endswith("logit_scale"):
            made[key] = np.full(value.shape, 2.0, np.float32)
    return made


def _tokenizer(folder: Path) -> Any:
    """CLIP's own vocabulary, out of the file that open_clip ships; what is left of 77 is <|endoftext|>."""
    from transformers import CLIPTokenizerFast
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    file = Path(find_spec("open_clip").origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        merges = opened.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return CLIPTokenizerFast(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="<|endoftext|>", model_max_length=77
    )


def _original() -> Any:
    """The network in a small size; its constructor would read a hub."""
    from imscore.mps.cross import CrossModel
    from imscore.mps.model import CLIPModel, XCLIPModel
    from torch import nn
    from transformers import CLIPConfig

    model = CLIPModel.__new__(CLIPModel)
    nn.Module.__init__(model)
    vision = TOWER | {"image_size": EDGE, "patch_size": 14}
    model.model = XCLIPModel(CLIPConfig(text_config=TOWER, vision_config=vision, projection_dim=24))
    model.cross_model = CrossModel(dim=24, layer_num=2, dim_head=8, heads=3)
    return model.eval()


def main() -> None:
    """Build, fill, score, write."""
    import tempfile
    from importlib.metadata import version

    import torch
    from transformers import CLIPImageProcessor

    torch.set_grad_enabled(False)
    model = _original()
    state = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    shapes = {key: list(value.shape) for key, value in state.items()}
    filled = {key: torch.from_numpy(value) for key, value in as_used(shapes).items()}
    assert not model.load_state_dict(filled, strict=False).unexpected_keys
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = _tokenizer(Path(folder))
    processor = CLIPImageProcessor(size={"shortest_edge": EDGE}, crop_size=EDGE)
    rules = {"max_length": 77, "padding": "max_length", "truncation": True, "return_tensors": "pt"}

    def score(prompt: str, image: Any) -> float:
        text_f, text_features = model.model.get_text_features(tokenizer(prompt, **rules).input_ids)
        image_f = model.model.get_image_features(processor(image, return_tensors="pt")["pixel_values"])
        condition_f, _ = model.model.get_text_features(tokenizer(CONDITION, **rules).input_ids)
        alike = torch.einsum("b i d, b j d -> b j i", text_f, condition_f)
        alike = torch.max(alike, dim=1, keepdim=True)[0]
        alike = alike / alike.max()
        mask = torch.where(alike > 0.3, 0, float("-inf")).repeat(1, image_f.shape[1], 1)
        looked = model.cross_model(image_f, text_f, mask)[:, 0, :]
        looked = looked / looked.norm(dim=-1, keepdim=True)
        text_features = text_features / text_features.norm(dim=-1, keepdim=True)
        return (model.logit_scale.exp() * text_features @ looked.T).item()

    chosen = {name: image.convert("RGB") for name, image in images().items() if name not in LEFT_OUT}
    golden = {
        "made_with": {
            package: version(package)
            for package in ("imscore", "transformers", "torch", "torchvision", "pillow", "numpy")
        },
        "shapes": shapes,
        "prompts": PROMPTS,
        "ids": {name: tokenizer(text, **{**rules, "return_tensors": None}).input_ids for name, text in PROMPTS.items()},
        "score": {p: {i: score(text, image) for i, image in chosen.items()} for p, text in PROMPTS.items()},
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in golden.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
