"""The loop that trains every part of the mini world: AdamW, warm-up and cosine, averaged weights, resumable to the bit.

Knows nothing of what is trained: a stage hands it a module and a function that gives the loss of a step. The step's
number is the only source of randomness, so that a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sp_rerank.train.mini.grammar import draw_description
from sp_rerank.train.mini.scenes import Scene, draw_scene

WARM_UP = 100
AVERAGE = 0.998  # of the weights, reached after the first 500 steps
SAVE_EVERY = 500


def scenes_of_step(seed: int, step: int, n: int) -> list[Scene]:
    """The training scenes of one step: the same for the same seed and step, never a held-out combination."""
    rng = random.Random(f"{seed}-{step}")
    return [draw_scene(draw_description(rng), rng) for _ in range(n)]


def pixels(scenes: list[Scene]) -> Tensor:
    """The scenes' images as (n, 3, 64, 64) float32 in [-1, 1]."""
    return torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over WARM_UP steps, then a cosine to zero."""
    if step < WARM_UP:
        return peak * (step + 1) / WARM_UP
    return peak * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))


def fit(
    module: nn.Module,
    loss_of: Callable[[int], tuple[Tensor, dict[str, float]]],
    *,
    steps: int,
    peak: float,
    folder: Path,
    weight_decay: float = 0.01,
) -> None:
    """Train `module` in place and leave the averaged weights in it.

    Args:
        module: The module to train; its parameters are float32.
        loss_of: the loss of a step and figures to log, seeded by the step alone.
        steps: Number of steps.
        peak: The highest learning rate.
        folder: where state.safetensors (resumed from when it is there) and metrics.jsonl go.
        weight_decay: on parameters of two dimensions and more.

    Raises:
        FloatingPointError: if the loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    params = [p for p in module.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in params]
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.99))
    buffers = dict(module.named_buffers())
    first = _resume(folder, names, params, average, buffers, optimizer)
    began = time.monotonic()
    module.train()
    for step in range(first, steps):
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        loss, figures = loss_of(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss of step {step} is {loss.item()}; resume from {folder} with a lower rate"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        keep = min(AVERAGE, (step + 1) / (step + 10))
        for mean, p in zip(average, params, strict=True):
            mean.lerp_(p.detach(), 1 - keep)
        if (step + 1) % 50 == 0:
            row = {"step": step + 1, "loss": loss.item(), "seconds": round(time.monotonic() - began, 1), **figures}
            with (folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            _save(folder, step + 1, names, params, average, buffers, optimizer)
    with torch.no_grad():
        for p, mean in zip(params, average, strict=True):
            p.copy_(mean)
    module.eval()


def _save(folder: Path, step: int, names, params, average, buffers, optimizer) -> None:
    tensors = {f"buffer/{name}": value for name, value in buffers.items()}  # the statistics of batch norms
    for name, p, mean in zip(names, params, average, strict=True):
        state = optimizer.state[p]
        tensors |= {f"weight/{name}": p.detach(), f"average/{name}": mean}
        tensors |= {f"{moment}/{name}": state[moment] for moment in ("exp_avg", "exp_avg_sq")}
    temporary = folder / "state.safetensors.part"
    save_file({key: value.contiguous() for key, value in tensors.items()}, temporary, metadata={"step": str(step)})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(folder / "state.safetensors")


def _resume(folder: Path, names, params, average, buffers, optimizer) -> int:
    from safetensors import safe_open

    path = folder / "state.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
    tensors = load_file(path)
    with torch.no_grad():
        for name, value in buffers.items():
            value.copy_(tensors[f"buffer/{name}"])
        for name, p, mean in zip(names, params, average, strict=True):
            p.copy_(tensors[f"weight/{name}"])
            mean.copy_(tensors[f"average/{name}"])
            moments = {moment: tensors[f"{moment}/{name}"] for moment in ("exp_avg", "exp_avg_sq")}
            optimizer.state[p] = {"step": torch.tensor(float(step)), **moments}
    return step
