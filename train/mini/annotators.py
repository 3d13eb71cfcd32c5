"""python -m sp_rerank.train.mini.annotators [--images build/mini/images] [--out build/mini/preferences]

Preferences of simulated people over the images of `sp_rerank.train.mini.images`, in the layouts of published data sets,
for `sp-rerank train`, `evaluate` and `robustness`. OUT has a folder for each of LABELS, what the people look at, and
in it

    bradley-terry.json   one ranking a prompt to learn from, by people who are all alike       (ImageReward's layout)
    careless.json        the same by people of whom one in three ranks at random             (the same)
    validation.json      other prompts, the mean order of ten people                           (HPD v2's test layout)
    test.json            other prompts, the order of the truth, ten people                     (the same)
    other.json           a second domain and people who weigh other things                     (the same)

A person ranks by the truth's utility plus Gumbel noise, so that of two images one is preferred with the probability of
Bradley and Terry's model. The noise is such that two people agree on 65 % of the pairs of a domain, as on ImageReward.
Everything is simulated, and a scorer sees nothing of the truth but these ranks. The truth of an image is computed once,
forty images a second on two cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit

from sp_rerank.storage.atomic import write
from sp_rerank.train.mini import truth
from sp_rerank.train.mini.images import DOMAINS, SEED, read_captions, read_images
from sp_rerank.train.mini.truth import Terms, Weights

LABELS: dict[str, Weights] = {"full": truth.FULL, "structure": truth.STRUCTURE, "color": truth.COLOR}
"""What people look at."""

OTHER = (0.5, 1.0, 2.0, 2.0)
"""How much of each weight the people of the second domain have."""

PEOPLE = 10  # a prompt where their mean order counts
AGREEMENT = 0.65  # of two people
CARELESS = 1 / 3  # of the people


def truth_of(folder: Path, jobs: int = 1) -> Terms:
    """The terms of a domain's images, (prompts, images) each; computed once and kept in FOLDER/truth.npz.

    Args:
        folder: of the domain.
        jobs: processes, a core each; 1 is this one.
    """
    captions, kept = read_captions(folder), folder / "truth.npz"
    known = _read_terms(kept) if kept.exists() else []
    if len(known) < len(captions):
        asked = [(folder, number, caption) for number, caption in enumerate(captions)][len(known) :]
        known += map(_terms_of_prompt, asked) if jobs == 1 else _terms_side_by_side(asked, jobs)
        temporary = kept.with_suffix(".part.npz")
        np.savez(temporary, terms=np.array(known))
        temporary.replace(kept)
    return Terms(*np.moveaxis(np.array(known[: len(captions)]), 1, 0))


def _terms_side_by_side(asked: Sequence[tuple[Path, int, str]], jobs: int) -> list[np.ndarray]:
    one_core: dict[str, Any] = {"initializer": torch.set_num_threads, "initargs": (1,)}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), **one_core) as pool:
        return list(pool.map(_terms_of_prompt, asked, chunksize=10))


def _read_terms(kept: Path) -> list[np.ndarray]:
    with np.load(kept) as file:
        return list(file["terms"])


def _terms_of_prompt(asked: tuple[Path, int, str]) -> np.ndarray:
    folder, number, caption = asked
    images = torch.from_numpy(read_images(folder, number)).movedim(-1, 1) / 255
    terms = truth.terms_of(caption, images)
    return np.array([terms.structure, terms.objects, terms.background, terms.sharpness])


def noise_for(utility: np.ndarray, agreement: float = AGREEMENT) -> float:
    """The scale of the Gumbel noise with which two people agree on such a share of all pairs of a group.

    The difference of two Gumbel variables is logistic, so one prefers a to b with p = sigmoid((u_a - u_b) / scale),
    and two agree with p^2 + (1 - p)^2.

    Args:
        utility: (groups, images).
        agreement: above .5 and below 1.
    """
    first, second = np.triu_indices(utility.shape[1], 1)
    gaps = utility[:, first] - utility[:, second]

    def beyond(logarithm: float) -> float:
        p = expit(gaps / np.exp(logarithm))
        return float((p**2 + (1 - p) ** 2).mean() - agreement)

    root: Any = brentq(beyond, -10, 10)
    return float(np.exp(root))


def opinions(utility: np.ndarray, scale: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """(groups, n, images) ranks of n people a group, 1 is the best."""
    noisy = utility[:, None] + scale * rng.gumbel(size=(len(utility), n, utility.shape[1]))
    return ranks(noisy)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis, 1 is the highest value."""
    return (-values).argsort(axis=-1, kind="stable").argsort(axis=-1, kind="stable") + 1


def learning_entries(caption: str, files: list[str], ranked: np.ndarray) -> list[dict[str, Any]]:
    """ImageReward's layout, an entry a person.

    Args:
        caption: the prompt.
        files: the images' names.
        ranked: (people, images).
    """
    return [{"prompt": caption, "generations": files, "ranking": ranks.tolist()} for ranks in ranked]


def testing_entries(caption: str, files: list[str], ranked: np.ndarray, order: np.ndarray) -> list[dict[str, Any]]:
    """HPD v2's test layout: one entry with all opinions; `order` (images,) is the rank that counts."""
    annotations = [{"rank": ranks.tolist(), "user_hash": f"simulated-{k}"} for k, ranks in enumerate(ranked)]
    return [{"prompt": caption, "image_path": files, "rank": order.tolist(), "raw_annotations": annotations}]


def careless(ranked: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The ranks of the same people, of whom a share of CARELESS rank at random, (groups, n, images)."""
    random_ranks = ranks(rng.random(ranked.shape))
    return np.where(rng.random((*ranked.shape[:2], 1)) < CARELESS, random_ranks, ranked)


def files_of(domain: str, number: int, images: int) -> list[str]:
    """The names of a prompt's images, from the folder of all domains."""
    return [f"{domain}/{number:04}-{j:02}.png" for j in range(images)]


def learning_file(captions: Sequence[str], ranked: np.ndarray) -> bytes:
    """A file to learn from; `ranked` (groups, n, images)."""
    entries = []
    for number, (caption, mine) in enumerate(zip(captions, ranked, strict=True)):
        entries += learning_entries(caption, files_of("train", number, mine.shape[1]), mine)
    return json.dumps(entries, indent=1).encode()


def testing_file(domain: str, captions: Sequence[str], ranked: np.ndarray, order: np.ndarray) -> bytes:
    """A file to test on; `ranked` (groups, n, images), `order` (groups, images)."""
    entries = []
    for number, (caption, mine, counts) in enumerate(zip(captions, ranked, order, strict=True)):
        entries += testing_entries(caption, files_of(domain, number, mine.shape[1]), mine, counts)
    return json.dumps(entries, indent=1).encode()


def write_labels(images: Path, out: Path, weights: Weights, rankings: int = 1, jobs: int = 1) -> float:
    """All files of one way of looking; `rankings` a prompt to learn from. Returns the noise."""
    terms = {name: truth_of(images / name, jobs) for name in ("train", "validation", "test", "other")}
    captions = {name: read_captions(images / name) for name in terms}
    utility = {name: terms[name].utility(weights) for name in ("train", "validation", "test")}
    mixed: Any = tuple(weight * share for weight, share in zip(weights, OTHER, strict=True))
    utility["other"] = terms["other"].utility(mixed)
    out.mkdir(parents=True, exist_ok=True)
    noise = noise_for(utility["train"])
    ranked = opinions(utility["train"], noise, rankings, np.random.default_rng(SEED))
    write(out / "bradley-terry.json", learning_file(captions["train"], ranked))
    write(out / "careless.json", learning_file(captions["train"], careless(ranked, np.random.default_rng(SEED + 1))))
    for name in ("validation", "test", "other"):
        scale = noise_for(utility[name])
        many = opinions(utility[name], scale, PEOPLE, np.random.default_rng(SEED + DOMAINS[name].number))
        # a choice among steps must not see the truth itself
        order = ranks(-many.mean(axis=1)) if name == "validation" else ranks(utility[name])
        write(out / f"{name}.json", testing_file(name, captions[name], many, order))
    return noise


def main(images: Path, out: Path) -> None:
    """Write everything to a folder."""
    for name, weights in LABELS.items():
        noise = write_labels(images, out / name, weights, jobs=2)
        print(f"{name}: noise {noise:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("build/mini/images"))
    parser.add_argument("--out", type=Path, default=Path("build/mini/preferences"))
    args = parser.parse_args()
    main(args.images, args.out)
