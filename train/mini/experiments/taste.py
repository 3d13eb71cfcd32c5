"""python -m sp_rerank.train.mini.experiments.taste [--images build/mini/images/picks] [--prompts 30]

What a taste learns from 30 to 300 answers: how often it orders two images of an unseen prompt as the person does.

A person of the first kind wants a direction of the base's embeddings and a higher score; one of the second wants light,
color, warmth, contrast and detail of the pixels. IMAGES is a folder of candidates, PROMPT-IMAGE.png beside
captions.json. A minute on two cores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sp_rerank import load_scorer
from sp_rerank.report.tables import table
from sp_rerank.scorers.taste import look
from sp_rerank.train.head import Answers, fit, predict
from sp_rerank.train.mini.experiments.choosing import Candidates, Shown, read_candidates
from sp_rerank.types import Scorer

Array = NDArray[np.float64]

PEOPLE = 5
COUNTS = (30, 60, 120, 300)
FLIPPED = 0.2
UNSEEN = 400  # pairs of unseen prompts, a person
BASE = "clip-mini"
KINDS = ("for what the base sees", "for looks")


def looks(images: Tensor) -> Array:
    """(n, 5) light, color, warmth, contrast and detail of (n, 3, H, W) images in [0, 1]."""
    gray = images.mean(dim=1)
    color = (images - gray[:, None]).abs().mean(dim=(1, 2, 3))
    warmth = (images[:, 0] - images[:, 2]).mean(dim=(1, 2))
    detail = gray.diff(dim=1).abs().mean(dim=(1, 2)) + gray.diff(dim=2).abs().mean(dim=(1, 2))
    return torch.stack([gray.mean(dim=(1, 2)), color, warmth, gray.std(dim=(1, 2)), detail], dim=1).double().numpy()


def likings(found: Candidates, features: list[Array], kind: str, person: int) -> Array:
    """(prompts, candidates) what a person of a kind makes of the images."""
    rng = np.random.default_rng(person)
    if kind == KINDS[0]:
        dimension = (features[0].shape[1] - 1) // 2
        direction = rng.normal(size=dimension)
        own = [_standard(each[:, 1 : dimension + 1] @ direction) + _standard(each[:, 0]) for each in features]
    else:
        weights = rng.normal(size=5)
        own = [_standard(looks(group.images)) @ weights for group in found.shown]
    return np.stack(own)


def _standard(values: Array) -> Array:
    return (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-9)


def seen_by(base: Scorer, group: Shown) -> Array:
    """(n, 1 + m) score and features of a prompt's images by the base."""
    seen = look(base, group.caption, group.images)
    return torch.cat([seen.score[:, None], seen.image, seen.match], dim=1).double().numpy()


def ask(
    features: list[Array], liking: Array, prompts: NDArray[np.int64], count: int, rng: np.random.Generator
) -> Answers:
    """Answers to random pairs of some prompts, without noise."""
    chosen = rng.choice(prompts, count)
    first = rng.integers(liking.shape[1], size=count)
    second = (first + rng.integers(1, liking.shape[1], size=count)) % liking.shape[1]
    gaps = np.stack([features[p][i] - features[p][j] for p, i, j in zip(chosen, first, second, strict=True)])
    labels = (liking[chosen, first] > liking[chosen, second]).astype(float)
    return Answers(gaps[:, 0], gaps[:, 1:], labels, chosen, np.ones(count, bool))


def flip(answers: Answers, rng: np.random.Generator) -> Answers:
    """The same with FLIPPED of the labels turned."""
    turned = rng.permutation(len(answers)) < FLIPPED * len(answers)
    labels = np.where(turned, 1 - answers.labels, answers.labels)
    return Answers(answers.score, answers.gaps, labels, answers.prompts, answers.fresh)


def measure(found: Candidates) -> str:
    """The table: agreement on unseen prompts, by person."""
    base = load_scorer(BASE)
    features = [seen_by(base, group) for group in found.shown]
    numbers = np.arange(len(features))
    answered, unseen = numbers[: len(numbers) * 2 // 3], numbers[len(numbers) * 2 // 3 :]
    rows: dict[str, list[float]] = {}
    slowest = 0.0
    for kind in KINDS:
        for person in range(PEOPLE):
            liking, rng = likings(found, features, kind, person), np.random.default_rng([person, 1])
            test = ask(features, liking, unseen, UNSEEN, rng)
            rows.setdefault(f"{kind}: {BASE}", []).append(_right(test.score, test))
            for count in COUNTS:
                clean = ask(features, liking, answered, count, rng)
                for how, answers in (("clean", clean), ("a fifth flipped", flip(clean, rng))):
                    began = time.perf_counter()
                    head = fit(answers)
                    slowest = max(slowest, time.perf_counter() - began)
                    name = f"{kind}: taste, {count} answers, {how}"
                    rows.setdefault(name, []).append(_right(predict(head, test), test))
    head = ["", *(f"person {person + 1}" for person in range(PEOPLE)), "mean"]
    lines = [[name, *(f"{value:.2f}" for value in values), f"{np.mean(values):.2f}"] for name, values in rows.items()]
    return f"{table(head, lines)}\nthe slowest fit took {slowest:.1f} s"


def _right(logits: Array, test: Answers) -> float:
    return float(np.mean((logits > 0) == (test.labels == 1)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("build/mini/images/picks"))
    parser.add_argument("--prompts", type=int, default=30)
    asked = parser.parse_args()
    print(measure(read_candidates(asked.images, asked.prompts)))
