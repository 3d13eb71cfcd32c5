"""python -m sp_rerank.train.mini.experiments.method [--data FOLDER] [--out FOLDER] [--seeds 3]

What does Stable Preference do on the mini world? Trains every method of METHODS from clip-mini on the
same noisy preferences, at equal steps, several seeds each, and compares them: accuracy in domain and across domains,
steadiness under HP&CC, and the judge's score of the best of a hundred. With --search it tries the readings of
SEARCH instead, one seed each, on the validation prompts: how the recipe's values were found.

Needs the files of `sp_rerank.train.mini.annotators`. A run that is there already is not made again, so the same command
goes on after an interruption. Everything it measures is simulated. Three quarters of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from sp_rerank import load_pipeline, load_scorer
from sp_rerank.diffusion.loading import find_dtype
from sp_rerank.report.tables import to_json
from sp_rerank.scorers.scoring import score_images
from sp_rerank.storage.atomic import write
from sp_rerank.storage.images import to_images
from sp_rerank.storage.perturbation import RATIOS, flip_and_crop
from sp_rerank.train import loop
from sp_rerank.train.mini.annotators import draw_captions
from sp_rerank.train.mini.experiments.figures import Scores, figures, markdown, unsteadiness
from sp_rerank.train.mini.judge import load_judge, make_images
from sp_rerank.train.model import load_base
from sp_rerank.train.preferences import ImageReader
from sp_rerank.train.readers import read_preferences
from sp_rerank.train.recipe import Recipe, read_recipe
from sp_rerank.train.scores import ScoredGroup, score_groups
from sp_rerank.types import Scorer

SEED = 9_000_000  # of the candidates; nothing else uses these
PROMPTS, CANDIDATES = 24, 100
BASE = "clip-mini"
METHOD, BASELINE, TWIN = "both stages, L_ai", "cross-entropy", "cross-entropy, augmented"

_UNIFORM, _NO_COPIES = "weighting=uniform", "ai_weight=0.0"
METHODS: dict[str, tuple[str, ...]] = {
    BASELINE: (_UNIFORM, _NO_COPIES),
    TWIN: (_UNIFORM, _NO_COPIES, "augment=true"),
    "no stages, L_ai": (_UNIFORM,),
    "stage 1": ("stage_1_steps=9999", _NO_COPIES),
    "stage 1, L_ai": ("stage_1_steps=9999",),
    "stage 2": ("stage_1_steps=0", _NO_COPIES),
    "stage 2, L_ai": ("stage_1_steps=0",),
    "both stages": (_NO_COPIES,),
    METHOD: (),
}
"""By name, what it changes in the recipe `mini`; a stage 1 of 9999 steps is one that lasts to the end."""

_LOGITS = ("gap_scale=logit", "gate_b=0.1", "gate_tau=0.05")  # the deck's gate
_RELATIVE = ("gap_scale=normalized", "gate_b=0.5", "gate_tau=0.5", "temperature=2.0")  # in deviations of the gaps
_OF_SCORES, _OF_IMAGES = "ai_distance=score-logit", "ai_distance=embedding-cosine"
SEARCH: dict[str, tuple[str, ...]] = {
    "cross-entropy, rate 1e-5": (*METHODS[BASELINE], "learning_rate=1e-5"),
    "cross-entropy, rate 3e-5": (*METHODS[BASELINE], "learning_rate=3e-5"),
    "cross-entropy, rate 1e-4": (*METHODS[BASELINE], "learning_rate=1e-4"),
    "logits, temperature 5, L_ai .1": (*_LOGITS, "temperature=5.0", "ai_weight=0.1", _OF_IMAGES),
    "relative, L_ai 1": (*_RELATIVE, "ai_weight=1.0", _OF_IMAGES),
    "relative, L_ai 10": (*_RELATIVE, "ai_weight=10.0", _OF_IMAGES),
    "relative, L_ai 1 of scores": (*_RELATIVE, "ai_weight=1.0", _OF_SCORES),
    "relative, L_ai 1 of scores, rate 1e-5": (*_RELATIVE, "ai_weight=1.0", _OF_SCORES, "learning_rate=1e-5"),
    "relative, L_ai 3 of scores": (*_RELATIVE, "ai_weight=3.0", _OF_SCORES),
    "relative, L_ai 10 of scores": (*_RELATIVE, "ai_weight=10.0", _OF_SCORES),
}
"""The same for the learning rates and readings that are tried first; where no rate is named it is the recipe's."""


@dataclass(frozen=True, slots=True)
class Task:
    """One training run."""

    name: str
    changes: tuple[str, ...]
    seed: int
    data: Path
    folder: Path


def recipe_of(task: Task) -> Recipe:
    """The recipe `mini` with a task's changes and seed."""
    recipe = read_recipe("mini")
    changes = [c.replace("9999", str(recipe.steps)) for c in task.changes]
    return recipe.with_overrides([*changes, f"seed={task.seed}"])


def train(task: Task) -> float:
    """Make a run, unless it is there; its best validation accuracy. The scorer is in FOLDER/best."""
    done = task.folder / "outcome.json"
    if not done.exists():
        recipe = recipe_of(task)
        outcome = loop.train(
            recipe,
            list(read_preferences(task.data / "train.json")),
            scorer=load_base(recipe),
            out=task.folder,
            validation=list(read_preferences(task.data / "validation.json")),
            resume=task.folder.exists(),
        )
        figures = {"best_step": outcome.best_step, "accuracy": outcome.best_accuracy, "first": outcome.first_accuracy}
        write(done, json.dumps(figures).encode())
    return json.loads(done.read_text(encoding="utf-8"))["accuracy"]


def train_and_score(task: Task, candidates: Path) -> Scores:
    """Make a run, unless it is there, and score everything with the scorer of its best validation step."""
    train(task)
    return score_everything(f"sp@{task.folder / 'best'}", task.data, candidates, task.folder / "scores.npz")


def score_everything(spec: str, data: Path, candidates: Path, kept: Path) -> Scores:
    """The scores of one scorer, unless they are there."""
    if not kept.exists():
        scorer = load_scorer(spec)
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_suffix(".part.npz")
        domains: dict[str, Any] = {name: _domain_scores(scorer, data / f"{name}.json") for name in ("test", "other")}
        np.savez(temporary, candidates=_candidate_scores(scorer, candidates), **domains)
        temporary.replace(kept)
    with np.load(kept) as file:
        return Scores(file["test"], file["other"], file["candidates"])


def _domain_scores(scorer: Scorer, file: Path) -> np.ndarray:
    return np.stack([group.scores for group in _scored(scorer, file)], axis=1)


def _scored(scorer: Scorer, file: Path) -> list[ScoredGroup]:
    views = [lambda image: image, *(partial(flip_and_crop, ratio=ratio) for ratio in RATIOS)]
    return list(score_groups(scorer, read_preferences(file), reader=ImageReader(), batch_size=100, views=views))


def _candidate_scores(scorer: Scorer, candidates: Path) -> np.ndarray:
    images = load_file(candidates)["images"]
    return np.array([
        score_images(scorer, caption, list(to_images(some / 255)))
        for caption, some in zip(captions_of_candidates(candidates.parent), images, strict=True)
    ])


def captions_of_candidates(folder: Path) -> list[str]:
    """The prompts of the best-of-a-hundred test, kept by `make_candidates`."""
    return json.loads((folder / "captions.json").read_text(encoding="utf-8"))


def make_candidates(data: Path, out: Path) -> Path:
    """A hundred candidates each of prompts that are in no file of preferences, with the judge's scores; made once."""
    path = out / "candidates.safetensors"
    if path.exists():
        return path
    out.mkdir(parents=True, exist_ok=True)
    known = {group.prompt for file in data.glob("*.json") for group in read_preferences(file)}
    rng = random.Random(SEED)
    half = PROMPTS // 2
    captions = [c for held in (False, True) for c in draw_captions(rng, half, held_out=held, known=known)]
    pipe, judge = load_pipeline("mini", dtype=find_dtype("auto", "mini", "cpu")), load_judge()
    images, judged = [], []
    for i, caption in enumerate(captions):
        made = make_images(pipe, [caption] * CANDIDATES, SEED + i * CANDIDATES)
        judged.append(judge.score(caption, made))
        images.append((made * 255).round().byte())
        print(f"candidates: {i + 1} of {PROMPTS} prompts", flush=True)
    write(out / "captions.json", json.dumps(captions).encode())
    temporary = path.with_suffix(".part")
    save_file({"images": torch.stack(images), "judge": torch.stack(judged)}, temporary)
    temporary.replace(path)
    return path


def _pool(jobs: int) -> ProcessPoolExecutor:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers: two runs side by side are quicker than one on two cores
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))


def try_reading(task: Task) -> tuple[float, float, float]:
    """The best validation accuracy of a reading, and its unsteadiness on the validation images."""
    accuracy = train(task)
    scorer = load_scorer(f"sp@{task.folder / 'best'}")
    return accuracy, *unsteadiness(_scored(scorer, task.data / "validation.json"))


def search(data: Path, out: Path, jobs: int) -> None:
    """Print what each reading of SEARCH gives on the validation prompts."""
    tasks = [Task(name, how, 0, data, out / "search" / _folder_name(name)) for name, how in SEARCH.items()]
    with _pool(jobs) as pool:
        waiting = {pool.submit(try_reading, task): task for task in tasks}
        for future in as_completed(waiting):
            accuracy, flips, shift = future.result()
            print(
                f"{waiting[future].name}: accuracy {accuracy:.4f}, order flips {flips:.4f}, shift {shift:.4f}",
                flush=True,
            )


def main(data: Path, out: Path, seeds: int, jobs: int) -> None:
    """Train, score, compare; the table goes to OUT/table.md and to the terminal, the figures to OUT/figures.json."""
    candidates = make_candidates(data, out)
    base = score_everything(BASE, data, candidates, out / f"{BASE}.npz")
    tasks = [
        Task(name, how, seed, data, out / "runs" / f"{_folder_name(name)}-{seed}")
        for seed in range(seeds)
        for name, how in METHODS.items()
    ]
    runs: dict[str, list[Scores]] = {name: [] for name in METHODS}
    with _pool(jobs) as pool:
        waiting = {pool.submit(train_and_score, task, candidates): task for task in tasks}
        for number, future in enumerate(as_completed(waiting), start=1):
            runs[waiting[future].name].append(future.result())
            print(f"{number} of {len(tasks)} runs: {waiting[future].name}", flush=True)
    domains = {name: list(read_preferences(data / f"{name}.json")) for name in ("test", "other")}
    judged = load_file(candidates)["judge"].double().numpy()
    results = {BASE: figures([base], base, runs[BASELINE], domains, judged)}
    results |= {name: figures(some, base, runs[BASELINE], domains, judged) for name, some in runs.items()}
    write(out / "figures.json", json.dumps(to_json(results), indent=1).encode())
    write(out / "table.md", markdown(results).encode())
    print(markdown(results))


def _folder_name(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/mini/preferences"))
    parser.add_argument("--out", type=Path, default=Path("build/mini/experiment"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, a core each")
    parser.add_argument("--search", action="store_true")
    args = parser.parse_args()
    if args.search:
        search(args.data, args.out, args.jobs)
    else:
        main(args.data, args.out, args.seeds, args.jobs)
