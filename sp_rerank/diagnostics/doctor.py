"""Checks that this machine can do what a run needs, by doing a small piece of each."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Finding:
    """One check.

    Attributes:
        what: What was checked.
        found: What was found.
        sound: Whether a run can work with it.
    """

    what: str
    found: str
    sound: bool = True


def examine() -> Iterator[Finding]:
    """The checks, one after the other; a check that raises is a finding too."""
    yield Finding("python", f"{platform.python_version()} on {platform.machine()}")
    for what, check in CHECKS.items():
        try:
            yield Finding(what, check())
        except Exception as error:
            yield Finding(what, f"{type(error).__name__}: {error}", sound=False)


def _versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("sp-rerank", "torch", "diffusers", "transformers"))


def _device() -> str:
    from sp_rerank.diffusion.loading import find_device, find_dtype, find_model

    device = find_device()
    model, _ = find_model("auto", device)
    return f"{device}; the model auto is {model} in {str(find_dtype('auto', model, device)).removeprefix('torch.')}"


def _image_model() -> str:
    from sp_rerank.diffusion.loading import load_pipeline
    from sp_rerank.diffusion.sampler import Sampler

    sampler = Sampler(load_pipeline("mini"), "a lemon", batch_size=1, guidance_scale=1.0, num_inference_steps=2)
    (batch,) = sampler.batches({0: 0})
    if not batch.images.isfinite().all():
        raise ValueError("the embedded model makes images that are not finite; install sp-rerank again")
    return f"draws {batch.images.shape[-1]}x{batch.images.shape[-2]} pixels"


def _scorer() -> str:
    from sp_rerank.scorers import load_scorer
    from sp_rerank.scorers.check import check_scorer

    scorer = load_scorer("clip-mini")
    check_scorer(scorer)
    return f"{scorer.name} keeps every rule of a scorer"


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free
    if free < 100e6:
        raise OSError(f"{free / 1e6:.0f} MB free here; a run of 100 images of 512x512 takes about 50 MB")
    return f"{free / 1e9:.1f} GB free here"


def _cache() -> str:
    from huggingface_hub import constants, try_to_load_from_cache

    from sp_rerank.diffusion.loading import MODELS

    known = MODELS["sd-v1.4"]
    held = try_to_load_from_cache(known.source, "model_index.json", revision=known.revision)
    state = "here" if isinstance(held, str) else "not here: it is fetched when first asked for"
    return f"{constants.HF_HUB_CACHE}; Stable Diffusion v1.4 is {state}"


CHECKS: dict[str, Callable[[], str]] = {
    "versions": _versions,
    "device": _device,
    "embedded model": _image_model,
    "embedded scorer": _scorer,
    "disk": _disk,
    "model cache": _cache,
}
