"""Scores of the original CycleReward, for tests/scorers to compare with.

    PYTHONPATH=tests python tests/parity/make_cycle_reward.py        # writes golden/cycle_reward.json beside this file

Run with an environment in which cyclereward 0.1.7 works (Python 3.11, transformers 4.45, timm 0.6, fairscale 0.4);
sp_rerank need not be there. Weights, images and the vocabulary are made as in `make_image_reward`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from parity.make_image_reward import (
    AS_IT_IS,
    VOCABULARY,
    checksum,
    images,
    weights,
    without_difference,
)

GOLDEN = Path(__file__).with_name("golden") / "cycle_reward.json"

PROMPTS = {
    "empty": "",
    "plain": "A lemon, wearing Sunglasses on the beach",
    "emoji": "🍋😎 on the 🏖️, naïve café 日本語 &amp; <b>",
    "exactly 128": " ".join(["lemon"] * 126),
    "129, the last is lost": " ".join(["lemon"] * 126) + " beach",
    "cut in a word": " ".join(["bear"] * 125) + " lemons sunglasses",
}
_SMALL = {"hidden_size": 32, "intermediate_size": 80, "num_attention_heads": 2, "num_hidden_layers": 2}
_SMALL |= {"max_position_embeddings": 130, "vocab_size": len(VOCABULARY) + 2}


def _original(folder: Path) -> Any:
    """The original network in a small size; nothing of a hub is read."""
    from cyclereward import model as module
    from cyclereward.blip import blip, blip_pretrain
    from cyclereward.blip.vit import VisionTransformer
    from transformers import BertTokenizer

    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    blip.BertTokenizer.from_pretrained = lambda _: BertTokenizer(str(folder / "vocab.txt"))
    fixed = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0, "add_cross_attention": True}
    (folder / "med_config.json").write_text(json.dumps(_SMALL | fixed), encoding="utf-8")
    tower = VisionTransformer(img_size=224, patch_size=32, embed_dim=48, depth=2, num_heads=3)
    blip_pretrain.create_vit = lambda *_: (tower, 48)
    module.cyclereward_args = {"blip_path": "", "vit": "large", "image_size": 224, "mlp_dim": 32}
    return module.CycleReward(med_config=str(folder / "med_config.json")).eval()


def main() -> None:
    """Build, fill, score, write."""
    import tempfile
    from importlib.metadata import version

    import torch

    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        model = _original(Path(folder))
    shapes = {key: list(value.shape) for key, value in model.state_dict().items() if value.is_floating_point()}
    filled = {key: torch.from_numpy(value) for key, value in weights(shapes).items()}
    left = model.load_state_dict(filled, strict=False)
    assert left.missing_keys == ["blip.text_encoder.embeddings.position_ids"] and not left.unexpected_keys, left
    given = {name: without_difference(image) if name in AS_IT_IS else image for name, image in images().items()}

    def reward(text: str, image: Any) -> float:
        return model.score(model.preprocess(image)[None], text).item()

    golden = {
        "made_with": {
            package: version(package)
            for package in ("cyclereward", "transformers", "torch", "torchvision", "pillow", "timm", "numpy")
        },
        "shapes": shapes,
        "counted_positions": "blip.text_encoder.embeddings.position_ids",
        "vocabulary": model.blip.tokenizer.convert_ids_to_tokens(range(len(model.blip.tokenizer))),
        "prompts": PROMPTS,
        "images": {name: checksum(image) for name, image in images().items()},
        "reward": {p: {i: reward(text, image) for i, image in given.items()} for p, text in PROMPTS.items()},
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in golden.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
