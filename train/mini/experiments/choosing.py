"""python -m sp_rerank.train.mini.experiments.choosing [--images build/mini/images/picks] [--prompts 30]

How soon a person who answers "which of these two?" comes to the best of a hundred candidates, with the questions that
the label page asks: the share of the way from the mean candidate to the best one after 0, 10, 20 and 40 answers. The
person is simulated: the truth with Bradley and Terry's noise, such that two answers to a pair agree in 76 of 100. The
prior is a made one that correlates .6 with the person, and the embedded scorers as they are.

IMAGES is a folder of candidates, PROMPT-IMAGE.png beside captions.json. The simulation takes two minutes on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from sp_rerank import load_scorer
from sp_rerank.choosing.contest import Contest, Item
from sp_rerank.choosing.questions import Question, Questions
from sp_rerank.choosing.store import Answer
from sp_rerank.report.tables import table
from sp_rerank.train.mini.annotators import noise_for, truth_of
from sp_rerank.train.mini.images import read_captions, read_images

Array = NDArray[np.float64]

AGREEMENT = 0.76  # of two answers of one person to a pair
CORRELATION = 0.6  # of the made prior with the person
ANSWERS = (0, 10, 20, 40)
SCORERS = ("clip-mini", "stable-preference-mini")
WAITING = 2  # questions that are chosen ahead, as on the page


@dataclass(frozen=True, slots=True)
class Shown:
    """The images of one prompt, (n, 3, 64, 64) in [0, 1]."""

    caption: str
    images: torch.Tensor


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidates of some prompts and what is thought of them.

    Attributes:
        shown: The prompts with their images.
        utilities: (prompts, candidates) of the simulated person, in any scale.
        scores: (prompts, candidates) by scorer.
    """

    shown: list[Shown]
    utilities: Array
    scores: dict[str, Array]


def read_candidates(folder: Path, prompts: int) -> Candidates:
    """The candidates of the first prompts of a folder, and what the truth and the scorers make of them."""
    shown = [
        Shown(caption, torch.from_numpy(read_images(folder, number)).movedim(-1, 1) / 255)
        for number, caption in enumerate(read_captions(folder)[:prompts])
    ]
    scorers = {name: load_scorer(name) for name in SCORERS}
    scores = {
        name: np.stack([scorer.score(group.caption, group.images).double().numpy() for group in shown])
        for name, scorer in scorers.items()
    }
    return Candidates(shown, truth_of(folder).utility()[:prompts], scores)


@dataclass(frozen=True, slots=True)
class Way:
    """One simulated person and prompt: by the number of answers in ANSWERS.

    Attributes:
        share: Of the way from the mean candidate to the best.
        claimed: P(the first is the best), as the page shows it.
        held: Whether it was.
    """

    share: tuple[float, ...]
    claimed: tuple[float, ...]
    held: tuple[bool, ...]


def simulate(utility: Array, scores: Array | None, chooser: str, rng: np.random.Generator) -> Way:
    """Let a person answer the questions of the page.

    Args:
        utility: (n,) in log-odds.
        scores: (n,) of the scorer whose order the questions start from, or None.
        chooser: "active", as on the page, or "random".
        rng: Draws questions and answers.
    """
    named = {} if scores is None else {"prior": scores}
    items = tuple(
        Item(str(i), Path(str(i)), {name: float(values[i]) for name, values in named.items()})
        for i in range(len(utility))
    )
    contest = Contest("", items, "prior" if named else "")
    questions = Questions([contest], "best" if chooser == "active" else "learn", rng)
    waiting: list[Question] = []
    way: list[tuple[float, float, bool]] = []
    for answered in range(max(ANSWERS) + 1):
        if answered in ANSWERS:
            belief = questions.belief(0)
            first = belief.order()[0]
            share = (utility[first] - utility.mean()) / (utility.max() - utility.mean())
            way.append((float(share), belief.best_probability(rng), bool(utility[first] == utility.max())))
        while len(waiting) <= WAITING:
            waiting.append(questions.next(waiting))
        questions.hear(_answered(waiting.pop(0), utility, rng))
    return Way(*zip(*way, strict=True))


def _answered(question: Question, utility: Array, rng: np.random.Generator) -> Answer:
    better = rng.random() < expit(utility[question.first] - utility[question.second])
    return Answer(
        question.id, "", str(question.first), str(question.second), float(better), False, question.first_side,
        question.repeat_of, 0.0, 1000, "simulated", question.chooser,
    )  # fmt: skip


def ways(found: Candidates, repetitions: int) -> Iterator[tuple[str, list[Way]]]:
    """The rows of the table: a name, and a way for each prompt and repetition."""
    scale = noise_for(found.utilities, AGREEMENT)
    people = found.utilities / scale

    def priors(name: str, rng: np.random.Generator, prompt: int) -> Array | None:
        if name == "none":
            return None
        if name != "made":
            return found.scores[name][prompt]
        z = (people[prompt] - people[prompt].mean()) / people[prompt].std()
        return CORRELATION * z + (1 - CORRELATION**2) ** 0.5 * rng.standard_normal(len(z))

    rows = [("random", "none"), ("random", "made"), ("active", "none"), ("active", "made")]
    for chooser, prior in [*rows, *(("active", name) for name in found.scores)]:
        made = []
        for prompt in range(len(people)):
            for repetition in range(repetitions):
                rng = np.random.default_rng([prompt, repetition])
                made.append(simulate(people[prompt], priors(prior, rng, prompt), chooser, rng))
        yield f"{chooser}, prior: {prior}", made


def markdown(results: Mapping[str, list[Way]]) -> str:
    """The shares as a table with standard errors, and how P(best) came out."""
    head = ["questions", *(f"{count} answers" for count in ANSWERS), "P(best) claimed / held"]
    rows = []
    for name, found in results.items():
        shares = np.array([way.share for way in found])
        error = shares.std(axis=0, ddof=1) / len(shares) ** 0.5
        claimed, held = (np.mean([getattr(way, of) for way in found], axis=0) for of in ("claimed", "held"))
        cells = [f"{mean:.2f} ± {e:.2f}" for mean, e in zip(shares.mean(axis=0), error, strict=True)]
        rows.append([name, *cells, ", ".join(f"{c:.2f} / {h:.2f}" for c, h in zip(claimed, held, strict=True))])
    return table(head, rows)


def main(folder: Path, prompts: int, repetitions: int) -> None:
    """Read, simulate, print."""
    found = read_candidates(folder, prompts)
    print(f"{len(found.shown)} prompts of {len(found.shown[0].images)} candidates")
    for name, scores in found.scores.items():
        each = [np.corrcoef(s, u)[0, 1] for s, u in zip(scores, found.utilities, strict=True)]
        print(f"{name} correlates {np.mean(each):.2f} with the person within a prompt")
    print(markdown(dict(ways(found, repetitions))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("build/mini/images/picks"))
    parser.add_argument("--prompts", type=int, default=30)
    parser.add_argument("--repetitions", type=int, default=1)
    asked = parser.parse_args()
    main(asked.images, asked.prompts, asked.repetitions)
