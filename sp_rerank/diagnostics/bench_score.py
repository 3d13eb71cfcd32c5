"""Scoring against two other ways of scoring, and preprocessing against Pillow, on ViT-L/14 with random weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sp_rerank.diagnostics.timing import PROMPT, ratio
from sp_rerank.diffusion import loading

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sp_rerank.scorers.clip import DualEncoder

PICTURE = 512  # pixels a side, of the images that are scored


def compare_score(n: int, rounds: int, dtype: str, progress: Callable[[str], None]) -> dict[str, Any]:
    """Our scoring against two others, and our preprocessing against Pillow, on ViT-L/14 with random weights.

    The others: (a) a loop in the style of hpsv2 1.2.0, with the model resident: each image on its own, its prompt
    encoded anew; (b) transformers' CLIPModel and its image processor, in batches, the prompt encoded once. All take the
    same n images (3, 512, 512) as tensors in [0, 1] and compute in the same precision, on the accelerator where there
    is one.

    Args:
        n: Number of images.
        rounds: How often each way is measured, in turn, after one round that is not counted.
        dtype: "float32", "bfloat16" or "float16".
        progress: Called with a line for each figure as it comes.

    Returns:
        Seconds (median) and ratios of neighbors (median).
    """
    import torch

    device = torch.device(loading.find_device())
    precision = getattr(torch, dtype)
    scorer: Any = _random_clip()
    scorer.to(device, precision)
    images = torch.rand(n, 3, PICTURE, PICTURE, generator=torch.Generator().manual_seed(0)).to(device)
    ways = {
        "sp-rerank": lambda: scorer.score(PROMPT, images),
        "loop in hpsv2's style": _per_image(scorer, images),
        "batched transformers": _transformers(images, precision),
        "our preprocessing": lambda: scorer.preprocess(images),
        "Pillow's preprocessing": _pillow(images),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, call in ways.items():
            with torch.no_grad():
                seconds[way].append(_time(call, device))
            progress(f"round {turn} of {rounds}: {way}: {seconds[way][-1]:.3f} s{'' if turn else ', not counted'}")
    seconds = {way: took[1:] for way, took in seconds.items()}
    ours, pixels = seconds["sp-rerank"], seconds["our preprocessing"]
    return {
        "images": n,
        "device": device.type,
        "dtype": dtype,
        **{f"{way}, median seconds": round(statistics.median(took), 3) for way, took in seconds.items()},
        "loop in hpsv2's style / sp-rerank": ratio(seconds["loop in hpsv2's style"], ours),
        "batched transformers / sp-rerank": ratio(seconds["batched transformers"], ours),
        "Pillow's / our preprocessing": ratio(seconds["Pillow's preprocessing"], pixels),
    }


def _random_clip() -> DualEncoder:
    """OpenAI's ViT-L/14 with random weights."""
    import open_clip
    import torch

    from sp_rerank.scorers.clip import DualEncoder
    from sp_rerank.scorers.preprocess import Preprocess

    shape: Any = open_clip.get_model_config("ViT-L-14")
    torch.manual_seed(0)
    return DualEncoder(
        name="random", embed_dim=shape["embed_dim"], vision_cfg=shape["vision_cfg"], text_cfg=shape["text_cfg"],
        quick_gelu=True, preprocess=Preprocess(224).to_dict(), score_scale="cosine", license="none", source="random",
    ).eval()  # fmt: skip


def _time(call: Callable[[], Any], device: torch.device) -> float:
    import torch

    began = time.perf_counter()
    call()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - began


def _per_image(scorer: DualEncoder, images: Tensor) -> Callable[[], list[float]]:
    """As hpsv2 1.2.0 scores (img_score.score), but for loading the model at each call."""
    from open_clip.transform import image_transform

    from sp_rerank.storage.images import to_images

    transform: Any = image_transform(224, is_train=False)

    def loop() -> list[float]:
        scores = []
        for image in images:
            pixels = transform(to_images(image[None])[0])[None].to(scorer.device, scorer.dtype)
            embedded = scorer.clip.encode_image(pixels, normalize=True)
            text = scorer.clip.encode_text(scorer.tokenize([PROMPT]).to(scorer.device), normalize=True)
            scores.append(float(embedded[0] @ text[0]))
        return scores

    return loop


def _transformers(images: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """The batched way of transformers 5, with its own image processor on tensors."""
    import torch
    from torch.nn import functional as F
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from sp_rerank.scorers.clip import build_tokenizer

    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    vision = {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "patch_size": 14,
    }  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=768)
    model: Any = CLIPModel(config)
    model.eval().to(images.device, dtype)
    processor = CLIPImageProcessor()
    tokens = build_tokenizer(None)([PROMPT]).to(images.device)

    def pooled(output: Any) -> Tensor:
        return F.normalize(output if isinstance(output, torch.Tensor) else output.pooler_output, dim=-1)

    def batched() -> Tensor:
        texts = pooled(model.get_text_features(tokens))
        scores = []
        for part in images.split(64):
            pixels = processor(list(part), do_rescale=False, return_tensors="pt").pixel_values.to(dtype)
            scores.append(pooled(model.get_image_features(pixels)) @ texts[0])
        return torch.cat(scores).float().cpu()

    return batched


def _pillow(images: Tensor) -> Callable[[], Tensor]:
    import torch
    from open_clip.transform import image_transform

    from sp_rerank.storage.images import to_images

    transform: Any = image_transform(224, is_train=False)
    return lambda: torch.stack([transform(image) for image in to_images(images)]).to(images.device)
