"""python -m sp_rerank.train.mini.experiments.method [--images FOLDER] [--out FOLDER] [--seeds 3] [--prompts 250]

What does Stable Preference do on the mini world? Trains every method of METHODS from clip-mini on one noisy ranking a
prompt, at equal steps, several seeds each and two pools of people, and compares them at the best validation step and at
the last one: accuracy in domain and across domains, steadiness under HP&CC, and the pick of a hundred by the half of
the truth that was not learned from. With --search it tries the learning rates and readings of SEARCH, one seed each,
on the validation prompts; with --curve it trains cross-entropy and the whole method on more and more prompts.

People look at structure here; color is the held-out half (`--labels color` turns it around). The first two stages of
the tower do not learn and are computed once (`maps`). Needs the images of `sp_rerank.train.mini.images`. A run that is
there already is not made again. Everything it measures is simulated. An hour on two cores.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np

from sp_rerank import load_scorer
from sp_rerank.report.tables import to_json
from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.storage.atomic import write
from sp_rerank.train.mini.annotators import LABELS, OTHER, careless, noise_for, opinions, truth_of
from sp_rerank.train.mini.experiments import maps
from sp_rerank.train.mini.experiments.figures import (
    Scores,
    Truths,
    correlations,
    figures,
    markdown,
    right_by_prompt,
)
from sp_rerank.train.mini.experiments.runs import Ranked, scores, train
from sp_rerank.train.mini.images import SEED, read_captions
from sp_rerank.train.recipe import Recipe, read_recipe

BASE = "clip-mini"
METHOD, BASELINE = "both stages + L_ai", "cross-entropy"
DOMAINS = {
    "train": maps.with_copies,
    "drafts": maps.with_copies,
    "validation": maps.as_it_is,
    "test": maps.under_hpcc,
    "other": maps.under_hpcc,
    "picks": maps.as_it_is,
}
POOLS = ("bradley-terry", "careless")

_UNIFORM, _NO_COPIES = "weighting=uniform", "ai_weight=0.0"
METHODS: dict[str, tuple[str, ...]] = {
    BASELINE: (_UNIFORM, _NO_COPIES),
    "cross-entropy, augmented": (_UNIFORM, _NO_COPIES, "augment=true"),
    "cross-entropy + L_ai": (_UNIFORM,),
    "stage 1": ("stage_1_steps=9999", _NO_COPIES),
    "stage 2": ("stage_1_steps=0", _NO_COPIES),
    "both stages": (_NO_COPIES,),
    METHOD: (),
    "both stages + L_ai of embeddings": ("ai_distance=embedding-cosine",),
}
"""By name, what it changes in the recipe `mini`; a stage 1 of 9999 steps is one that lasts to the end."""

SEARCH: dict[str, tuple[str, ...]] = {
    **{f"{BASELINE}, rate {rate}": (*METHODS[BASELINE], f"learning_rate={rate}") for rate in ("1e-4", "3e-4", "1e-3")},
    **{
        f"{METHOD}, weight {weight}, rate {rate}": (f"ai_weight={weight}", f"learning_rate={rate}")
        for weight in ("0.3", "1.0", "3.0")
        for rate in ("1e-4", "3e-4", "1e-3")
    },
    f"{METHOD}, logit reading": ("gap_scale=logit", "gate_b=0.1", "gate_tau=0.05", "temperature=5.0"),
}
CURVE = (125, 250, 500, 1000)  # prompts
EVERY = 50  # steps between validations
MEASURED = ("accuracy", "correlation")  # on the validation prompts

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Task:
    """One training run: a method's changes of the recipe, on the rankings of so many prompts by a pool of people.

    It sees each prompt `epochs` times, or takes the steps of the recipe where that is None.
    """

    name: str
    changes: tuple[str, ...]
    seed: int
    pool: str
    labels: str
    prompts: int
    images: Path
    out: Path
    epochs: int | None = None

    @property
    def group(self) -> str:
        """Names the runs that are compared with one another."""
        long = f"-{self.epochs}-epochs" if self.epochs else ""
        return f"{self.labels}-{self.pool}-{self.prompts}{long}"

    @property
    def folder(self) -> Path:
        """Where its scores are kept."""
        name = "".join(c if c.isalnum() else "-" for c in self.name)
        return self.out / "runs" / self.group / f"{name}-{self.seed}"


def recipe_of(task: Task) -> Recipe:
    """The recipe `mini` with a task's changes and seed."""
    recipe = read_recipe("mini")
    if task.epochs:
        steps = task.epochs * task.prompts * recipe.pairs_per_prompt // recipe.batch_size
        recipe = recipe.with_overrides([f"steps={steps}", f"stage_1_steps={steps // 6}"])
    changes = [c.replace("9999", str(recipe.steps)) for c in task.changes]
    return recipe.with_overrides([*changes, f"seed={task.seed}"])


def rankings(images: Path, labels: str, pool: str, prompts: int, n: int = 1) -> np.ndarray:
    """(prompts, n, images) ranks by simulated people; pool "noise-free" is the order of the truth."""
    utility = truth_of(images / "train").utility(LABELS[labels])
    if pool == "noise-free":
        return opinions(utility[:prompts], 0.0, 1, np.random.default_rng(0))
    ranked = opinions(utility, noise_for(utility), n, np.random.default_rng(SEED))
    if pool == "careless":
        ranked = careless(ranked, np.random.default_rng(SEED + 1))
    return ranked[:prompts]


def truths(images: Path, labels: str) -> Truths:
    """The truth of all test images; `held_out` is the half that `labels` leaves out, or all where it leaves none."""
    mine = LABELS[labels]
    half = LABELS[{"structure": "color", "color": "structure"}.get(labels, "full")]
    other = tuple(weight * share for weight, share in zip(mine, OTHER, strict=True))
    return Truths(
        test=truth_of(images / "test").utility(mine),
        other=truth_of(images / "other").utility((other[0], other[1], other[2], other[3])),
        picks=truth_of(images / "picks").utility(mine),
        held_out=truth_of(images / "picks").utility(half),
    )


@cache
def data_of(images: Path, out: Path, name: str) -> tuple[list[str], maps.Tensor]:
    """Captions and maps of a domain."""
    scorer = load_scorer(BASE)
    assert isinstance(scorer, DualEncoder)
    kept = out / "maps" / f"{name}-{scorer.name.split('@')[1]}.safetensors"
    return read_captions(images / name), maps.cached_maps(scorer, images / name, kept, DOMAINS[name])


def score_everything(tail: DualEncoder, images: Path, out: Path) -> Scores:
    """The scores of all test images."""
    test, other, picks = (scores(tail, *data_of(images, out, name)) for name in ("test", "other", "picks"))
    return Scores(test, other, picks[0])


def run(task: Task) -> dict[str, Scores]:
    """Make a run, unless it is there: its scores at the best validation step and at the last one."""
    kept = {when: task.folder / f"{when}.npz" for when in ("best", "last")}
    if not kept["last"].exists():
        _run(task)
    return {when: _read(path) for when, path in kept.items()}


def _run(task: Task) -> None:
    best, kept_best, curve = -1.0, None, []

    def look(step: int, tail: DualEncoder) -> None:
        nonlocal best, kept_best
        curve.append(validated(task, step, tail))
        if curve[-1]["accuracy"] > best:
            best, kept_best = curve[-1]["accuracy"], copy.deepcopy(tail)

    last = _train(task, look)
    assert kept_best is not None
    _write(score_everything(kept_best, task.images, task.out), task.folder / "best.npz")
    _write_curve(curve, task)
    _write(score_everything(last, task.images, task.out), task.folder / "last.npz")


def _train(task: Task, look: Callable[[int, DualEncoder], None]) -> DualEncoder:
    """The tail after the last step; `look` as for `runs.train`."""
    base = load_scorer(BASE)
    assert isinstance(base, DualEncoder)
    captions, kept = data_of(task.images, task.out, "train")
    n = task.prompts
    ranked = rankings(task.images, task.labels, task.pool, n)
    learned = Ranked(captions[:n], list(kept[:n]), ranked)
    tail = maps.tail_of(base)
    train(recipe_of(task), tail, learned, EVERY, look)
    return tail


def validated(task: Task, step: int, tail: DualEncoder) -> dict[str, float]:
    """What a tail is worth on the validation prompts, by the half of the truth that is learned from."""
    judged = truth_of(task.images / "validation").utility(LABELS[task.labels])
    found = scores(tail, *data_of(task.images, task.out, "validation"))[0]
    accuracy, correlation = float(right_by_prompt(found, judged).mean()), float(correlations(found, judged).mean())
    return {"step": step, "accuracy": accuracy, "correlation": correlation}


def run_curve(task: Task) -> list[dict[str, float]]:
    """Make a run, unless it is there, and look at nothing but the validation prompts: what it had at each look."""
    file = task.folder / "curve.json"
    if not file.exists():
        curve: list[dict[str, float]] = []
        _train(task, lambda step, tail: curve.append(validated(task, step, tail)))
        _write_curve(curve, task)
    return json.loads(file.read_text(encoding="utf-8"))


def _write_curve(curve: Sequence[dict[str, float]], task: Task) -> None:
    task.folder.mkdir(parents=True, exist_ok=True)
    write(task.folder / "curve.json", json.dumps(curve).encode())


def _write(found: Scores, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part.npz")
    np.savez(temporary, test=found.test, other=found.other, picks=found.picks)
    temporary.replace(path)


def _read(path: Path) -> Scores:
    with np.load(path) as file:
        return Scores(file["test"], file["other"], file["picks"])


def run_all(make: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> list[Result]:
    """What `make` makes of all tasks, some side by side."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers: two runs side by side are quicker than one on two cores
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(make, task): task for task in tasks}
        for number, future in enumerate(as_completed(waiting), start=1):
            future.result()
            print(f"{number} of {len(tasks)} runs: {waiting[future].name}", flush=True)
        return [future.result() for future in waiting]


def compare(like: Task, seeds: int, jobs: int, methods: Sequence[str]) -> None:
    """The table of some methods and the baseline, at the best step and at the last.

    Args:
        like: A run of one of them; the others are made like it.
        seeds: Number of runs of each.
        jobs: Processes.
        methods: Names in METHODS or SEARCH.
    """
    compared = {name: how for name, how in {**METHODS, **SEARCH}.items() if name in (BASELINE, *methods)}
    images, out, labels = like.images, like.out, like.labels
    tasks = [
        replace(like, name=name, changes=how, seed=seed) for seed in range(seeds) for name, how in compared.items()
    ]
    runs = dict(zip([(task.name, task.seed) for task in tasks], run_all(run, tasks, jobs), strict=True))
    base = load_scorer(BASE)
    assert isinstance(base, DualEncoder)
    start, truth = score_everything(maps.tail_of(base), images, out), truths(images, labels)
    for when in ("best", "last"):
        mine = {name: [runs[name, seed][when] for seed in range(seeds)] for name in compared}
        results = {BASE: figures([start], start, mine[BASELINE], truth)}
        results |= {name: figures(some, start, mine[BASELINE], truth) for name, some in mine.items()}
        stem = f"{like.group}-{when}"
        write(out / f"{stem}.json", json.dumps(to_json(results), indent=1).encode())
        write(out / f"{stem}.md", markdown(results).encode())
        print(f"{like.pool}, {when} step\n\n{markdown(results)}")


def search(like: Task, jobs: int) -> None:
    """What each rate and reading of SEARCH gives on the validation prompts, in runs like one of them."""
    tasks = [replace(like, name=name, changes=how) for name, how in SEARCH.items()]
    for task, curve in zip(tasks, run_all(run_curve, tasks, jobs), strict=True):
        found = [f"{key} {max(row[key] for row in curve):.3f}, last {curve[-1][key]:.3f}" for key in MEASURED]
        print(f"{task.name}: {'; '.join(found)}")


def learning_curve(images: Path, out: Path, labels: str, jobs: int) -> None:
    """The correlation with the truth among unseen validation candidates, by the number of prompts learned from."""
    tasks = [
        Task(name, METHODS[name], 0, pool, labels, prompts, images, out)
        for prompts in CURVE
        for pool in (POOLS[0], "noise-free")
        for name in (BASELINE, METHOD)
    ]
    for task, curve in zip(tasks, run_all(run_curve, tasks, jobs), strict=True):
        most = max(row["correlation"] for row in curve)
        print(f"{task.prompts} prompts, {task.pool}, {task.name}: correlation {most:.3f}")


def main(args: argparse.Namespace) -> None:
    """What the command line asks for."""
    if args.curve:
        learning_curve(args.images, args.out, args.labels, args.jobs)
        return
    for people in args.pools:
        like = Task(
            BASELINE, METHODS[BASELINE], 0, people, args.labels, args.prompts, args.images, args.out, args.epochs
        )
        if args.search:
            search(like, args.jobs)
        else:
            compare(like, args.seeds, args.jobs, args.methods)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("build/mini/images"))
    parser.add_argument("--out", type=Path, default=Path("build/mini/experiment"))
    parser.add_argument("--labels", choices=list(LABELS), default="structure")
    parser.add_argument("--pools", nargs="+", choices=list(POOLS), default=list(POOLS))
    parser.add_argument("--prompts", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, a core each")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *SEARCH], default=list(METHODS))
    parser.add_argument("--epochs", type=int, help="how often each prompt is seen  [default: the recipe's 300 steps]")
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--curve", action="store_true")
    main(parser.parse_args())
