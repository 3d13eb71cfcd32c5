"""python -m sp_rerank.train.mini.experiments.ship [--images FOLDER] [--out FOLDER] [--steps 3000] [--seeds 2]

Trains the scorer that ships as `stable-preference-mini`: clip-mini after Stable Preference with the recipe `mini`, in
more steps and on more prompts, those of the domains `train` and `drafts`, with one ranking a prompt, the mean order of
several simulated people who look at everything. Keeps the seed and the step with the best rank correlation on the
validation prompts, writes the scorer in half precision to build/mini/stable-preference, and beside it and beside
build/mini/clip a calibration from people's choices on the validation prompts. Prints what it is worth on the prompts of
best-of-a-hundred. With `--prompts` it learns from fewer and writes nothing. Everything is simulated. Needs the images
of `sp_rerank.train.mini.images` and build/mini/clip; half an hour on two cores, a quarter of it once for maps and
truth.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
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
        kept += list(seen)
        orders.append(mean_order(truth_of(images / domain, jobs=2).utility(), people))
    return Ranked(captions[:prompts], kept[:prompts], np.concatenate(orders)[:prompts])


@dataclass(frozen=True, slots=True)
class Trained:
    """A scorer and what it is worth on the validation prompts.

    Attributes:
        name: The training run and the step.
        weights: Of its tail.
        found: (prompts, images) scores of the validation images.
        correlation: Of these with the truth.
    """

    name: str
    weights: dict[str, Tensor]
    found: Array
    correlation: float


def validated(name: str, tail: DualEncoder, images: Path, out: Path) -> Trained:
    """A tail on the validation prompts."""
    judged = truth_of(images / "validation").utility()
    found = scores(tail, *data_of(images, out / "experiment", "validation"))[0]
    correlation, accuracy = float(correlations(found, judged).mean()), float(right_by_prompt(found, judged).mean())
    print(json.dumps({"scorer": name, "correlation": correlation, "accuracy": accuracy}), flush=True)
    return Trained(name, {key: value.clone() for key, value in tail.state_dict().items()}, found, correlation)


def train_run(recipe: Recipe, images: Path, out: Path, people: int, prompts: int | None) -> Trained:
    """One training run: its best step. The weights are kept, and a run that is there is not made again."""
    file = out / "experiment" / "ship" / f"{recipe.sha256[:12]}-{people}-{prompts or 'all'}.safetensors"
    base = load_scorer(BASE)
    assert isinstance(base, DualEncoder)
    tail, best, name = maps.tail_of(base), None, f"seed {recipe.seed}"
    if file.exists():
        tail.load_state_dict(load_file(file))
        return validated(name, tail, images, out)

    def look(step: int, learning: DualEncoder) -> None:
        nonlocal best
        found = validated(f"{name}, step {step}", learning, images, out)
        best = found if best is None or found.correlation > best.correlation else best

    train(recipe, tail, learned_from(images, out, people, prompts), EVERY, look)
    assert best is not None
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(best.weights, file)
    return best


def keep(best: Trained, recipe: Recipe, learned: str, images: Path, out: Path) -> DualEncoder:
    """Write the scorer and both calibrations."""
    base = load_scorer(BASE)
    assert isinstance(base, DualEncoder)
    tail = maps.tail_of(base)
    tail.load_state_dict(best.weights)
    scorer = maps.with_tail(base, tail)
    scorer.register_to_config(
        name=recipe.name,
        source=f"{base.name} trained with the recipe mini ({recipe.steps} steps, {best.name}) on {learned}, "
        "sp_rerank.train.mini.experiments.ship",
    )
    folder, judged = out / "stable-preference", truth_of(images / "validation").utility()
    scorer.half().save_pretrained(folder)
    keep_calibration(folder, best.found, judged)
    start = scores(maps.tail_of(base), *data_of(images, out / "experiment", "validation"))[0]
    keep_calibration(out / "clip", start, judged)
    return scorer.float()


def main(images: Path, out: Path, people: int, steps: int, seeds: int, prompts: int | None) -> None:
    """Train, choose, write, and print figures as JSON."""
    count = len(learned_from(images, out, people, prompts).captions)  # maps and truths that are not there are made here
    recipe = read_recipe("mini").with_overrides([f"steps={steps}", f"stage_1_steps={steps // 6}"])
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, a core each
    with ProcessPoolExecutor(min(seeds, 2), mp_context=get_context("spawn")) as pool:
        each = [recipe.with_overrides([f"seed={seed}"]) for seed in range(seeds)]
        waiting = [pool.submit(train_run, one, images, out, people, prompts) for one in each]
        best = max((found.result() for found in waiting), key=lambda one: one.correlation)
    learned = f"the mean order of {people} simulated people for each of {count} prompts"
    scorers = {BASE: load_scorer(BASE)}
    if prompts is None:
        scorers[recipe.name] = keep(best, recipe, learned, images, out)
    terms = truth_of(images / "picks", jobs=2)
    for name, scorer in scorers.items():
        assert isinstance(scorer, DualEncoder)
        found = scores(maps.tail_of(scorer), *data_of(images, out / "experiment", "picks"))[0]
        print(json.dumps({name: {label: worth(found, terms.utility(LABELS[label])) for label in LABELS}}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("build/mini/images"))
    parser.add_argument("--out", type=Path, default=Path("build/mini"))
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--prompts", type=int, help="to learn from  [default: all that are there]")
    args = parser.parse_args()
    main(args.images, args.out, args.people, args.steps, args.seeds, args.prompts)
