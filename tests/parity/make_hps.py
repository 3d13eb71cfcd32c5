"""Golden scores of HPS v2 by its original code: writes hps.json, hps.safetensors and images/hps_*.png beside this file.

    python tests/parity/make_hps.py        # with hpsv2x 1.2.0 installed; a few seconds

hpsv2's own `score` does the work, unchanged; only the network is small and random, in the names of the published
HPS_v2_compressed.pt. Its vocabulary is CLIP's, of which the file keeps the rows that the prompts use; the others are 0.
"""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import hpsv2.img_score as original
import hpsv2.src.open_clip.transform as original_transform
import numpy as np
import torch
from hpsv2.src.open_clip import add_model_config, create_model_and_transforms, get_tokenizer
from PIL import Image
from safetensors.torch import save_file

GOLDEN = Path(__file__).parent / "golden"
IMAGES = GOLDEN / "images"

ARCHITECTURE = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 48, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
}

PROMPTS = {
    "empty": "",
    "plain": "A lemon, wearing Sunglasses on the beach",
    "5,000 characters": "sunglasses " * 454 + "beach.",
    "emoji": "🍋😎 on the 🏖️, naïve café 日本語 &amp; <b> “quoted”",
    "exactly 77 tokens": " ".join(["lemon"] * 75),
}


def draw(width: int, height: int, seed: int) -> Image.Image:
    """Waves and a little noise: small as a PNG, with edges that a resize can get wrong."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    frequency, phase = rng.uniform(0.02, 0.6, (2, 3)), rng.uniform(0, 6, 3)
    waves = np.sin(x[..., None] * frequency[0] + y[..., None] * frequency[1] + phase) > rng.uniform(-0.8, 0.8, 3)
    shade = 40 * np.sin((x + y)[..., None] / 9 + phase)
    return Image.fromarray(np.uint8(np.clip(waves * 170 + shade + 40, 0, 255)))


def write_images() -> list[str]:
    """Every kind of file, as PNG; the names in the order of the scores."""
    alpha = draw(90, 61, 5).convert("RGBA")
    alpha.putalpha(draw(90, 61, 6).convert("L"))
    turned = draw(75, 50, 8)
    exif = turned.getexif()
    exif[0x0112] = 6
    pictures = {
        "square": draw(128, 128, 0),
        "exact": draw(64, 64, 1),
        "odd_wide": draw(133, 57, 2),
        "odd_high": draw(51, 77, 3),
        "smaller": draw(23, 17, 4),
        "rgba": alpha,
        "palette": draw(97, 41, 7).quantize(16),
        "grey": draw(64, 101, 9).convert("L"),
        "exif": turned,
        "strip": draw(1000, 1, 10),
        "exact_edge": draw(64, 40, 11),
    }
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        picture.save(IMAGES / f"hps_{name}.png", optimize=True, exif=exif if name == "exif" else None)
    return list(pictures)


def build() -> torch.nn.Module:
    """The fork's CLIP with random weights, large enough for the scores to differ, in `score`'s place for the model."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(ARCHITECTURE, file)
        file.flush()
        add_model_config(Path(file.name))
        torch.manual_seed(0)
        model, _, preprocess = create_model_and_transforms(
            Path(file.name).stem, None, precision="amp", device="cpu", light_augmentation=True, output_dict=True
        )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.6 if "embedding" in name else 1.5 * weight[0].numel() ** -0.5)
            elif name != "logit_scale":
                weight.add_(0.2 * torch.randn_like(weight))
        used = get_tokenizer("ViT-H-14")(list(PROMPTS.values())).unique()
        unused = torch.ones(49408, dtype=torch.bool).index_fill(0, used, False)
        model.token_embedding.weight[unused] = 0
    original.model_dict.update(model=model, preprocess_val=preprocess)
    return model


@contextmanager
def without_antialias() -> Iterator[None]:
    """The resize of torchvision before 0.17, when the paper's scores were made."""
    today = original_transform.F
    original_transform.F = SimpleNamespace(resize=partial(today.resize, antialias=False), pad=today.pad)
    yield
    original_transform.F = today


def score_all(names: list[str], checkpoint: Path) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Scores of each image for each prompt, and what the original says of an image that it fails on."""
    scores, failed = {}, {}
    for name in names:
        file = IMAGES / f"hps_{name}.png"
        try:
            scores[name] = [float(original.score(str(file), p, str(checkpoint))[0]) for p in PROMPTS.values()]
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    # It takes RGBA for an image with a mask; the copy says what it makes of the colours.
    colours = Image.open(IMAGES / "hps_rgba.png").convert("RGB")
    scores["rgba"] = [float(original.score(colours, p, str(checkpoint))[0]) for p in PROMPTS.values()]
    return scores, failed


def main() -> None:
    names, model = write_images(), build()
    state = {key: value.detach().clone() for key, value in model.state_dict().items()}
    used = state["token_embedding.weight"].abs().sum(dim=1).nonzero().flatten()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "HPS_v2_compressed.pt")
        torch.save({"state_dict": state}, checkpoint)
        scores, failed = score_all(names, checkpoint)
        with without_antialias():
            of_that_time, _ = score_all(names, checkpoint)
    rows = state.pop("token_embedding.weight")[used]
    save_file({**state, "token_embedding.rows": rows, "token_embedding.used": used}, GOLDEN / "hps.safetensors")
    golden = {
        "original": "hpsv2.img_score.score; antialiased, as torchvision resizes since 0.17, and without",
        "versions": {name: version(name) for name in ("hpsv2x", "torch", "torchvision", "pillow")},
        "python": platform.python_version(),
        "architecture": ARCHITECTURE,
        "prompts": PROMPTS,
        "scores": scores,
        "scores without antialias": of_that_time,
        "failed": failed,
        "remarks": {"rgba": "scored as its RGB copy", "exif": "not turned: the original ignores the tag"},
    }
    (GOLDEN / "hps.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    spread = np.std([value for row in scores.values() for value in row])
    print(f"{len(scores)} images x {len(PROMPTS)} prompts, spread {spread:.4f}; the original fails on {failed}")


if __name__ == "__main__":
    main()
