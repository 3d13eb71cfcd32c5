"""python -m sp_rerank.train.mini.experiments.ship [--images FOLDER] [--out FOLDER] [--people 20] [--seeds 3]

Trains the scorer that ships as `stable-preference-mini`: clip-mini after Stable Preference with the recipe `mini`, on
one ranking a prompt, the mean order of several simulated people who look at everything. Keeps the seed and the step
with the best rank correlation on the validation prompts, writes the scorer in half precision to
build/mini/stable-preference, and beside it and beside build/mini/clip a calibration from people's choices on the
validation prompts. Prints what it is worth on the prompts of best-of-a-hundred. Everything is simulated. Needs the
images of `sp_rerank.train.mini.images` and build/mini/clip; five minutes a seed on two cores, and five once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
from sp_rerank.train.recipe import read_recipe

EVERY = 25  # steps between validations


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


def main(images: Path, out: Path, people: int, seeds: int) -> None:
    """Train, choose, write, and print figures as JSON."""
    base = load_scorer(BASE)
    assert isinstance(base, DualEncoder)
    captions, kept = data_of(images, out / "experiment", "train")
    judged = truth_of(images / "validation").utility()
    shown, seen = data_of(images, out / "experiment", "validation")
    order = mean_order(truth_of(images / "train").utility(), people)
    learned = Ranked(captions, kept[:, :, : maps.COPIES + 1], order)
    best, chosen, validated = -1.0, None, np.zeros(())
    for seed in range(seeds):
        recipe, tail = read_recipe("mini").with_overrides([f"seed={seed}"]), maps.tail_of(base)

        def look(step: int, learning: DualEncoder, seed: int = seed) -> None:
            nonlocal best, chosen, validated
            found = scores(learning, shown, seen)[0]
            correlation = float(correlations(found, judged).mean())
            accuracy = float(right_by_prompt(found, judged).mean())
            print(
                json.dumps({"seed": seed, "step": step, "correlation": correlation, "accuracy": accuracy}), flush=True
            )
            if correlation > best:
                best, chosen, validated = correlation, maps.with_tail(base, learning), found

        train(recipe, tail, learned, EVERY, look)
    assert chosen is not None
    recipe = read_recipe("mini")
    chosen.register_to_config(
        name=recipe.name,
        source=f"{base.name} trained with the recipe mini (sha256 {recipe.sha256}) on the mean order of {people} "
        f"simulated people for each of {len(captions)} prompts, sp_rerank.train.mini.experiments.ship",
    )
    folder = out / "stable-preference"
    chosen.half().save_pretrained(folder)
    keep_calibration(folder, validated, judged)
    keep_calibration(out / "clip", scores(maps.tail_of(base), shown, seen)[0], judged)
    whole = {name: LABELS[name] for name in LABELS}
    terms = truth_of(images / "picks")
    for name, tail in ((BASE, maps.tail_of(base)), (recipe.name, maps.tail_of(chosen.float()))):
        found = scores(tail, *data_of(images, out / "experiment", "picks"))[0]
        print(json.dumps({name: {label: worth(found, terms.utility(weights)) for label, weights in whole.items()}}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("build/mini/images"))
    parser.add_argument("--out", type=Path, default=Path("build/mini"))
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    main(args.images, args.out, args.people, args.seeds)
