"""Measures this machine: the ways to do one thing take turns in one run, and medians are compared.

Returns figures and judges nothing. The machine's speed drifts; the ratio of neighboring measurements does not.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_rerank.diffusion import loading
from sp_rerank.scorers import resolve_sp

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sp_rerank.scorers.clip import DualEncoder

PROMPT = "a lemon wearing sunglasses on the beach"
PICTURE = 512  # pixels a side, of the images that `compare_score` scores


def compare_generate(n: int, rounds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Our whole command against (a) a plain loop and (b) a batched loop, each a process of its own, on the mini model.

    All three make n candidates on the CPU at the mini model's own steps, in the precision that `--dtype auto` takes,
    score them with the same scorer and save every image: start-up, loading and writing are in every figure.

    Args:
        n: Number of candidates.
        rounds: How often each way is measured, in turn.
        progress: Called with a line for each figure as it comes.

    Returns:
        Seconds (median and all), ratios of neighbors (median), and our peak memory in MB.
    """
    with tempfile.TemporaryDirectory() as scratch:
        ways = {
            "sp-rerank": [
                *[sys.executable, "-m", "sp_rerank", "generate", PROMPT],
                *["--model", "mini", "--device", "cpu", "--n", str(n)],
            ],
            "plain loop": [sys.executable, "-c", _loop(n, 1, scratch)],
            "batched loop": [sys.executable, "-c", _loop(n, loading.MODELS["mini"].cpu_batch, scratch)],
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        memory: dict[str, float] = {}
        for turn in range(rounds):
            for way, command in ways.items():
                folder = ["--out", str(Path(scratch) / f"run{turn}")] if way == "sp-rerank" else []
                took, peak = timed_process([*command, *folder])
                memory[way] = max(peak, memory.get(way, 0))
                seconds[way].append(took)
                progress(f"round {turn + 1} of {rounds}: {way}: {took:.1f} s, {peak:.0f} MB")
    ours = seconds["sp-rerank"]
    return {
        "candidates": n,
        **{f"{way}, median seconds": round(statistics.median(took), 2) for way, took in seconds.items()},
        "plain loop / sp-rerank": _ratio(seconds["plain loop"], ours),
        "batched loop / sp-rerank": _ratio(seconds["batched loop"], ours),
        "peak memory of sp-rerank, MB": round(memory["sp-rerank"]),
    }


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(theirs, ours, strict=True)), 2)


def timed_process(command: Sequence[str]) -> tuple[float, float]:
    """Run a command to its end: seconds, and peak memory in MB, which counts from what this process has at the start.

    Raises:
        RuntimeError: with what it printed, if it fails.
    """
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        complaint = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        took = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[:4]} failed: {complaint.strip()[-2000:]}")
    return took, usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def _loop(n: int, batch: int, folder: str) -> str:
    """A script that does the same with diffusers alone, `batch` images a call, scored as they come."""
    scorer, _ = resolve_sp("mini")
    return f"""
import torch
from diffusers import StableDiffusionPipeline
from sp_rerank import load_scorer
from sp_rerank.diffusion.loading import MINI, MODELS, find_dtype
model = MODELS["mini"]
pipe = StableDiffusionPipeline.from_pretrained(MINI, dtype=find_dtype("auto", "mini", "cpu"))
pipe.set_progress_bar_config(disable=True)
scorer = load_scorer({scorer!r})
scores, images = [], []
for first in range(0, {n}, {batch}):
    seeds = range(first, min(first + {batch}, {n}))
    made = pipe(
        {PROMPT!r}, num_images_per_prompt=len(seeds), num_inference_steps=model.steps,
        guidance_scale=model.guidance_scale, generator=[torch.Generator("cpu").manual_seed(s) for s in seeds],
    ).images
    scores += scorer.score({PROMPT!r}, made).tolist()
    images += made
for i, image in enumerate(images):
    image.save(f"{folder}/{{i}}.png")
"""


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
        "loop in hpsv2's style / sp-rerank": _ratio(seconds["loop in hpsv2's style"], ours),
        "batched transformers / sp-rerank": _ratio(seconds["batched transformers"], ours),
        "Pillow's / our preprocessing": _ratio(seconds["Pillow's preprocessing"], pixels),
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
