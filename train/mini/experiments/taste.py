"""python -m sp_rerank.train.mini.experiments.taste [--images build/mini/images/picks] [--prompts 30]

What a taste learns from 30 to 300 answers: how often it orders two images of an unseen prompt as the person does.

A person of the first kind wants a direction of the base's embeddings and a higher score; one of the second wants light,
color, warmth, contrast and detail of the pixels. IMAGES is a folder of candidates, PROMPT-IMAGE.png beside
captions.json. Beside it what training the scorer itself makes of TRAINED clean answers: the last blocks of the base, by
cross-entropy with `sp-rerank train`'s step. Ten minutes on one core, nearly all of it for the trainings.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sp_rerank import load_scorer
from sp_rerank.report.tables import table
from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.scorers.taste import look
from sp_rerank.train.data import PairBatch
from sp_rerank.train.head import Answers, fit, predict
from sp_rerank.train.mini.experiments.choosing import Candidates, Shown, read_candidates
from sp_rerank.train.model import freeze
from sp_rerank.train.recipe import read_recipe
from sp_rerank.train.step import TrainStep
from sp_rerank.types import Scorer

Array = NDArray[np.float64]

PEOPLE = 5
COUNTS = (30, 60, 120, 300)
FLIPPED = 0.2
UNSEEN = 400  # pairs of unseen prompts, a person
TRAINED = 120  # answers that the scorer itself learns from
EPOCHS = 6
CHANGES = ("weighting=uniform", "ai_weight=0.0", "batch_size=12", "pairs_per_prompt=12", "warmup_steps=5")
"""Of the recipe `mini`: cross-entropy, and batches for few answers."""
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


@dataclass(frozen=True, slots=True)
class Asked:
    """Pairs of candidates that a person chose of, (n,) each.

    Attributes:
        prompts: Which prompt.
        first: Its candidate.
        second: Another one.
        labels: 1 where the first is liked better, else 0.
    """

    prompts: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    labels: Array

    def answers(self, features: list[Array]) -> Answers:
        """The same as a taste learns from it."""
        rows = zip(self.prompts, self.first, self.second, strict=True)
        gaps = np.stack([features[p][i] - features[p][j] for p, i, j in rows])
        return Answers(gaps[:, 0], gaps[:, 1:], self.labels, self.prompts, np.ones(len(gaps), bool))


def ask(liking: Array, prompts: NDArray[np.int64], count: int, rng: np.random.Generator) -> Asked:
    """Answers to random pairs of some prompts, without noise."""
    chosen = rng.choice(prompts, count)
    first = rng.integers(liking.shape[1], size=count)
    second = (first + rng.integers(1, liking.shape[1], size=count)) % liking.shape[1]
    return Asked(chosen, first, second, (liking[chosen, first] > liking[chosen, second]).astype(float))


def train(shown: list[Shown], asked: Asked) -> DualEncoder:
    """The base after training on answers."""
    scorer = load_scorer(BASE)
    assert isinstance(scorer, DualEncoder)
    steps = EPOCHS * len(asked.labels) // 12
    recipe = read_recipe("mini").with_overrides([*CHANGES, f"steps={steps}", f"stage_1_steps={steps}"])
    scorer.train()
    freeze(scorer, recipe.trainable_image_blocks, recipe.trainable_text_blocks)
    take, rng = TrainStep(recipe, scorer), np.random.default_rng(recipe.seed)
    for step in range(steps):
        rows = rng.choice(len(asked.labels), recipe.batch_size, replace=False)
        prompts = asked.prompts[rows]
        sides = [
            torch.stack([shown[p].images[i] for p, i in zip(prompts, which[rows], strict=True)])
            for which in (asked.first, asked.second)
        ]
        numbers = torch.arange(len(rows))
        take(
            step,
            PairBatch(
                pixels=scorer.preprocess(torch.cat(sides), device="cpu"),
                copied=False,
                tokens=scorer.tokenize([shown[p].caption for p in prompts]),
                first=numbers,
                second=numbers + len(rows),
                prompt=numbers,
                label=torch.from_numpy(asked.labels[rows]).float(),
                names=tuple(f"{p}-{side}" for side in range(2) for p in prompts),
            ),
        )
    return scorer.eval()


def right(scorer: Scorer, shown: list[Shown], test: Asked) -> float:
    """How often a scorer orders pairs as the person does."""
    scores = {p: scorer.score(shown[p].caption, shown[p].images).numpy() for p in np.unique(test.prompts)}
    rows = zip(test.prompts, test.first, test.second, strict=True)
    return float(
        np.mean([(scores[p][i] > scores[p][j]) == label for (p, i, j), label in zip(rows, test.labels, strict=True)])
    )


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
            asked = ask(liking, unseen, UNSEEN, rng)
            test = asked.answers(features)
            rows.setdefault(f"{kind}: {BASE}", []).append(_right(test.score, test))
            for count in COUNTS:
                pairs = ask(liking, answered, count, rng)
                clean = pairs.answers(features)
                if count == TRAINED:
                    name = f"{kind}: {BASE} trained, {count} answers, clean"
                    rows.setdefault(name, []).append(right(train(found.shown, pairs), found.shown, asked))
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
