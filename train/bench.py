"""python -m sp_rerank.train.bench train [--steps 4] [--rounds 3]
python -m sp_rerank.train.bench step RECIPE

How fast a training step is against a plain loop with the same math (two minutes on two cores), and what a step of a
recipe costs in arithmetic and memory: counted, nothing is computed or loaded. Prints JSON. Knows no verdict.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.train import losses
from sp_rerank.train.data import Loader, PairOrder, Perturbations
from sp_rerank.train.model import build_optimizer, freeze, load_base, random_base
from sp_rerank.train.preferences import ImageReader, ImageSource, PreferenceGroup
from sp_rerank.train.recipe import Recipe, read_recipe
from sp_rerank.train.step import TrainStep

PROMPTS, IMAGES = 40, 8


def compare_train(steps: int, rounds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Our step against a plain loop's, with the recipe `mini` in stage 2, opened and perturbed images included.

    The plain loop goes through the pairs of a batch: it opens, perturbs, preprocesses and encodes both images and the
    prompt of each, collects what the loss needs, and takes one step. Both start from the same weights and see the same
    pairs, so their losses should be equal but for rounding.

    Args:
        steps: Number of steps of each way in a round.
        rounds: Number of rounds, the ways in turn; one more of each comes first and does not count.
        progress: Called with a line of text for each figure.

    Returns:
        Pairs a second (median), their ratio (median of neighbors), and the largest difference of the losses.
    """
    changes = [f"steps={max(steps, 1)}", "stage_1_steps=0", "warmup_steps=1", "precision=float32"]
    recipe = read_recipe("mini").with_overrides(changes)
    took: dict[str, list[float]] = {"ours": [], "plain loop": []}
    apart = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        groups = _preferences(Path(scratch))
        for turn in range(rounds + 1):
            lost = {}
            for way, run in (("ours", _ours), ("plain loop", _plain)):
                began = time.perf_counter()
                lost[way] = run(recipe, groups, steps)
                rate = steps * recipe.batch_size / (time.perf_counter() - began)
                if turn:
                    took[way].append(rate)
                progress(f"round {turn} of {rounds}: {way}: {rate:.1f} pairs/s{'' if turn else ', not counted'}")
            apart = max(apart, *(abs(a - b) for a, b in zip(*lost.values(), strict=True)))
    ratios = [a / b for a, b in zip(*took.values(), strict=True)]
    return {
        "pairs a step": recipe.batch_size,
        "ours, median pairs/s": round(statistics.median(took["ours"]), 1),
        "plain loop, median pairs/s": round(statistics.median(took["plain loop"]), 1),
        "ours / plain loop": round(statistics.median(ratios), 2),
        "largest difference of the losses": apart,
    }


def count_step(recipe: Recipe) -> dict[str, Any]:
    """What a step of a recipe costs on one device: counted on tensors without data, nothing is computed.

    The encoders' share only, each image and copy of a pair distinct and a prompt a pair: what sharing saves depends on
    the data. Activations are those that autograd keeps, in the recipe's precision, with the matrices of plain
    attention: a fused one keeps less.

    Args:
        recipe: whose base is a published dual encoder.

    Returns:
        Parameters, TFLOP a step (a multiplication and an addition are two), and GB of memory.

    Raises:
        UsageError: if the base is another.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        scorer = random_base(recipe)
        freeze(scorer, recipe.trainable_image_blocks, recipe.trainable_text_blocks)
        clip: Any = scorer.clip
        clip.set_grad_checkpointing(recipe.gradient_checkpointing)
        clip.to(getattr(torch, recipe.precision)).train()
        views = 2 * recipe.batch_size * (2 if recipe.ai_weight > 0 else 1)
        images, texts = (
            min(recipe.micro_batch_size or views, views),
            min(recipe.micro_batch_size or recipe.batch_size, recipe.batch_size),
        )
        size = scorer.preprocess.size
        pixels = torch.empty(images, 3, size, size, dtype=clip.logit_scale.dtype)
        tokens = torch.zeros(texts, scorer.max_tokens, dtype=torch.int64)
    work, kept = [], []
    for encode, given in ((clip.encode_image, pixels), (clip.encode_text, tokens)):
        seen: dict[int, int] = {}
        with FlopCounterMode(display=False) as counter, _kept_storages(seen):
            encode(given).sum().backward()
            if recipe.micro_batch_size:  # GradCache's first pass
                with torch.no_grad():
                    encode(given)
        work.append(counter.get_total_flops() / len(given))
        kept.append(sum(seen.values()))
    flop = views * work[0] + recipe.batch_size * work[1]
    parameters = list(scorer.parameters())
    total, learning = (
        sum(p.numel() for p in some) for some in (parameters, [p for p in parameters if p.requires_grad])
    )
    return {
        "parameters, M": round(total / 1e6, 1),
        "of which learn, M": round(learning / 1e6, 1),
        "TFLOP a step": round(flop / 1e12, 1),
        "EFLOP a run": round(recipe.steps * flop / 1e18, 2),
        "weights, float32, GB": round(4 * total / 1e9, 1),
        "gradients and AdamW, GB": round(12 * learning / 1e9, 1),
        "activations, GB": round(max(kept) / 1e9 if recipe.micro_batch_size else sum(kept) / 1e9, 1),
    }


def _kept_storages(seen: dict[int, int]) -> AbstractContextManager[Any]:
    """Notes the bytes of each storage that autograd keeps, once."""
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter):
            seen[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)


def _preferences(folder: Path) -> list[PreferenceGroup]:
    """Drawn scenes in a random order."""
    from sp_rerank.train.mini.scenes import draw_scenes

    rng = random.Random(0)
    groups = []
    for i in range(PROMPTS):
        scenes = draw_scenes(IMAGES, seed=i)
        paths = [folder / f"{i}-{j}.png" for j in range(IMAGES)]
        for path, scene in zip(paths, scenes, strict=True):
            Image.fromarray(scene.image).save(path)
        ranks = rng.sample(range(len(paths)), len(paths))
        caption = scenes[0].description.caption
        groups.append(PreferenceGroup.ranked(caption, [ImageSource(path) for path in paths], ranks))
    return groups


def _start(recipe: Recipe) -> DualEncoder:
    scorer: Any = load_base(recipe)
    scorer.train()
    freeze(scorer, recipe.trainable_image_blocks, recipe.trainable_text_blocks)
    return scorer


def _ours(recipe: Recipe, groups: list[PreferenceGroup], steps: int) -> list[float]:
    scorer = _start(recipe)
    train_step, loader = TrainStep(recipe, scorer), _loader(recipe, groups, scorer)
    return [train_step(step, batch).loss for step, batch in loader.batches(0, steps)]


def _plain(recipe: Recipe, groups: list[PreferenceGroup], steps: int) -> list[float]:
    scorer = _start(recipe)
    optimizer = build_optimizer(scorer, recipe)
    order, loader = _order(recipe, groups), _loader(recipe, groups, scorer)
    return [_plain_step(recipe, scorer, optimizer, loader, order.of_step(step), step) for step in range(steps)]


def _order(recipe: Recipe, groups: list[PreferenceGroup]) -> PairOrder:
    return PairOrder(groups, batch_size=recipe.batch_size, pairs_per_prompt=recipe.pairs_per_prompt, seed=recipe.seed)


def _loader(recipe: Recipe, groups: list[PreferenceGroup], scorer: DualEncoder) -> Loader:
    return Loader(groups, _order(recipe, groups), scorer, ImageReader(), Perturbations.of(recipe))


def _plain_step(
    recipe: Recipe,
    scorer: DualEncoder,
    optimizer: torch.optim.Optimizer,
    loader: Loader,
    places: list[tuple[int, int]],
    step: int,
) -> float:
    """A pair after the other."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    labels: list[float] = []
    scale = scorer.clip.logit_scale.exp()
    for place in places:
        batch = loader.load_pairs(step, [place])
        images = F.normalize(scorer.clip.encode_image(batch.pixels).float(), dim=-1)
        texts = F.normalize(scorer.clip.encode_text(batch.tokens).float(), dim=-1)
        views, copies = batch.views(images, texts)
        assert copies is not None
        gap = views.gap(scale)
        interference = losses.anti_interference_loss(*losses.distances(views, copies, recipe.ai_distance, scale))
        parts.append((gap, losses.preference_loss(gap, batch.label), interference))
        labels.append(float(batch.label))
    gap, preference, interference = (torch.cat([part[k] for part in parts]) for k in range(3))
    label = torch.tensor(labels)
    seen, _ = losses.scaled_gaps(gap, gap, scale, recipe.gap_scale)
    seen = losses.better_minus_worse(seen, label)
    weights = losses.softmax_weights(seen, seen, recipe.temperature)
    loss = (weights * (preference + recipe.ai_weight * interference)).sum()
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate_at(step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        scorer.clip.logit_scale.clamp_(0, math.log(100))
    return loss.item()


def main() -> None:
    """Measure or count, as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("train", help="a training step against a plain loop")
    measure.add_argument("--steps", type=int, default=4, help="training steps in a round")
    measure.add_argument("--rounds", type=int, default=3, help="rounds of each way, in turn")
    count = commands.add_parser("step", help="what a step of a recipe costs")
    count.add_argument("recipe", help="name of a recipe or a .toml file, whose base is a published dual encoder")
    args = parser.parse_args()
    if args.command == "train":
        result = compare_train(args.steps, args.rounds, print)
    else:
        result = count_step(read_recipe(args.recipe))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
