"""python -m sp_rerank.train.mini.experiments.ship [--images FOLDER] [--out FOLDER] [--steps 3000] [--seeds 1]

Trains the scorer that ships as `stable-preference-mini`: clip-mini after Stable Preference with the recipe `mini`, in
more steps and on more prompts, those of the domains `train` and `drafts`, with one ranking a prompt, the mean order of
several simulated people who look at everything. Keeps the seed and the step with the best rank correlation on the
validation prompts, writes the scorer in half precision to build/mini/stable-preference, and beside it and beside
build/mini/clip a calibration from people's choices on the validation prompts. Prints what it is worth on the prompts of
best-of-a-hundred. With `--prompts` it learns from fewer and writes nothing. Everything is simulated. Needs the images
of `sp_rerank.train.mini.images` and build/mini/clip; half an hour a seed on two cores, and a quarter once.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sp_rerank import load_scorer
from sp_rerank.scorers import calibration
from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.stats.calibration import calibrate
from sp_rerank.train.mini.annotators import LABELS, PEOPLE, noise_for, opinions, ranks, truth_of
from sp_rerank.train.mini.experiments import maps
from sp_rerank.train.mini.experiments.figures import Array, correlations, picked_truth, right_by_prompt
from sp_rerank.train.mini.experiments.method import BASE, data_of
from sp_rerank.train.mini.experiments.runs import Ranked, scores, train
from sp_rerank.train.mini.images import SEED
from sp_rerank.train.recipe import Recipe, read_recipe

EVERY = 100  # steps between validations


def gaps_and_choices(found: Array, utility: Array) -> tuple[Array, Array]:
    """Score gaps of all pairs of a prompt and what PEOPLE people chose; (prompts, images) each in, flat out."""
    ranked = opinions(utility, noise_for(utility), PEOPLE, np.random.default_rng(SEED))
    first, second = np.triu_indices(utility.shape[1], 1)
    gaps = np.repeat((found[:, first] - found[:, second])[:, None], PEOPLE, axis=1)
    chosen = (ranked[..., first] < ranked[..., second]).astype(float)
    return gaps.ravel(), chosen.ravel()


def keep_calibration(folder: Path, found: Array, utility: Array) -> None:
    """Write the calibration of a scorer's folder; its scores and the truth, (prompts, images) each."""
    fitted = calibrate(*gaps_and_choices(found, utility))
    data = "simulated people, validation prompts of the mini world"
    calibration.keep(load_scorer(f"sp@{folder}"), fitted, data=data, simulated=True)


def mean_order(utility: Array, people: int) -> NDArray[np.int64]:
    """(prompts, 1, images) ranks by the mean order of so many people; utility (prompts, images)."""
    ranked = opinions(utility, noise_for(utility), people, np.random.default_rng(SEED))
    return ranks(-ranked.mean(axis=1))[:, None]


def worth(found: Array, truth: Array) -> dict[str, float]:
    """What scores of a hundred candidates are worth: the correlation with the truth and the way that the pick goes."""
    mean, best = truth.mean(axis=1), truth.max(axis=1)
    way = (picked_truth(found, truth) - mean).sum() / (best - mean).sum()
    return {"correlation": float(correlations(found, truth).mean()), "gain": float(way)}


def learned_from(images: Path, out: Path, people: int, prompts: int | None) -> Ranked:
    """The prompts to learn from, finished images first, or the first ones of these."""
    captions: list[str] = []
    kept: list[Tensor] = []
    orders = []
    for domain in ("train", "drafts"):
        shown, seen = data_of(images, out / "experiment", domain)
        captions += shown
        kept += [versions[:, : maps.COPIES + 1] for versions in seen]  # without previews
        orders.append(mean_order(truth_of(images / domain, jobs=2).utility(), people))
    return Ranked(captions[:prompts], kept[:prompts], np.concatenate(orders)[:prompts])


@dataclass(slots=True)
class Best:
    """The scorer of the best step so far."""

    correlation: float = -1.0
    scorer: DualEncoder | None = None
    found: Array | None = None  # its scores of the validation images


def train_seed(recipe: Recipe, base: DualEncoder, learned: Ranked, images: Path, out: Path, best: Best) -> None:
    """One training run; a step that is better on the validation prompts takes the place of the best one."""
    shown, seen = data_of(images, out / "experiment", "validation")
    judged = truth_of(images / "validation").utility()

    def look(step: int, learning: DualEncoder) -> None:
        found = scores(learning, shown, seen)[0]
        correlation = float(correlations(found, judged).mean())
        accuracy = float(right_by_prompt(found, judged).mean())
        line = {"seed": recipe.seed, "step": step, "correlation": correlation, "accuracy": accuracy}
        print(json.dumps(line), flush=True)
        if correlation > best.correlation:
            best.correlation, best.scorer, best.found = correlation, maps.with_tail(base, learning), found

    train(recipe, maps.tail_of(base), learned, EVERY, look)


def keep(best: Best, recipe: Recipe, people: int, prompts: int, base: DualEncoder, images: Path, out: Path) -> None:
    """Write the scorer and both calibrations."""
    assert best.scorer is not None and best.found is not None
    best.scorer.register_to_config(
        name=recipe.name,
        source=f"{base.name} trained with the recipe mini (sha256 {recipe.sha256}) on the mean order of {people} "
        f"simulated people for each of {prompts} prompts, sp_rerank.train.mini.experiments.ship",
    )
    folder, judged = out / "stable-preference", truth_of(images / "validation").utility()
    best.scorer.half().save_pretrained(folder)
    keep_calibration(folder, best.found, judged)
    keep_calibration(
        out / "clip", scores(maps.tail_of(base), *data_of(images, out / "experiment", "validation"))[0], judged
    )


def main(images: Path, out: Path, people: int, steps: int, seeds: int, prompts: int | None) -> None:
    """Train, choose, write, and print figures as JSON."""
    base = load_scorer(BASE)
    assert isinstance(base, DualEncoder)
    learned, best = learned_from(images, out, people, prompts), Best()
    recipe = read_recipe("mini").with_overrides([f"steps={steps}", f"stage_1_steps={steps // 6}"])
    for seed in range(seeds):
        train_seed(recipe.with_overrides([f"seed={seed}"]), base, learned, images, out, best)
    assert best.scorer is not None
    if prompts is None:
        keep(best, recipe, people, len(learned.captions), base, images, out)
    terms = truth_of(images / "picks", jobs=2)
    for name, scorer in ((BASE, base), (recipe.name, best.scorer.float())):
        found = scores(maps.tail_of(scorer), *data_of(images, out / "experiment", "picks"))[0]
        print(json.dumps({name: {label: worth(found, terms.utility(LABELS[label])) for label in LABELS}}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("build/mini/images"))
    parser.add_argument("--out", type=Path, default=Path("build/mini"))
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--prompts", type=int, help="to learn from  [default: all that are there]")
    args = parser.parse_args()
    main(args.images, args.out, args.people, args.steps, args.seeds, args.prompts)
