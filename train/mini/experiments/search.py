"""python -m sp_rerank.train.mini.experiments.search [--plan FILE] [--prompts 100] [--figure FILE]

What a search keeps and spares on the mini model, against all hundred candidates of the same seeds. On the first
prompts of the mini world a schedule is chosen (`--plan` writes it), on others, which chose nothing, every schedule is
acted out on the same images. Two views: of the scorer that selects, and, with `--truth`, of the truth, which does not.
The seconds are measured apart, on a few prompts, the searches in turn; so is steering, which makes other images than
the seeds. Everything is simulated.

Candidates are made once, kept as files (`looks`) and made where they are missing: 100 prompts take some hours on two
cores, another scorer some minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sp_rerank.config import EXHAUSTIVE, FAST, STEERING
from sp_rerank.report.tables import new_figure, percent, to_svg
from sp_rerank.run.folder import RunDir
from sp_rerank.search import planner
from sp_rerank.search.cheapest import cheapest
from sp_rerank.search.planner import PlanEstimate
from sp_rerank.search.recorded import Place, Recording
from sp_rerank.search.schedule import Schedule, ScheduledRound, describe, read_schedule, shipped, to_toml
from sp_rerank.stats import agreement, best_of_n
from sp_rerank.stats.agreement import Estimate
from sp_rerank.storage.atomic import write
from sp_rerank.train.mini.experiments.looks import FINISH, SCHEDULER, STEPS, Candidates, Way, load_pipe, record_all
from sp_rerank.train.mini.images import draw_captions
from sp_rerank.types import Scorer

SEED = 13_000_000  # of the prompts
CANDIDATES, TOP_K = 100, 4
CHOOSING = 43  # prompts before those of the measurement
SPACING, DRAFTS = 0.8, (6,)
FIRST_LOOK = 3  # inside a draft
DEFAULT_STEPS = 50  # of Stable Diffusion's own pipelines
PREVIEWS = (0.25, 0.4, 0.55)  # of the run's own steps
HALVING = Schedule("halving", (ScheduledRound(0.4, 0.7), ScheduledRound(0.55, 0.3)))
STOCHASTIC = "EulerAncestralDiscrete"  # steering needs a scheduler that draws noise


def captions(n: int) -> list[str]:
    """The prompts: CHOOSING to choose schedules by, then n to measure on."""
    return draw_captions(random.Random(SEED), CHOOSING + n, held_out=False, known=set())


def recording_of(candidates: Candidates, scorer: Scorer, drafts: Sequence[int], gold: Any = None) -> Recording:
    """What a recorded run of these candidates would hold."""
    seen: dict[Place, tuple[np.ndarray, int]] = {}
    for steps in drafts:
        way = Way(steps, SPACING)
        for step in range(FIRST_LOOK, steps + 1):
            place: Place = (steps, None if step == steps else step)
            seen[place] = (candidates.scores(scorer, way, step), step)
    for share in PREVIEWS:
        step = round(share * STEPS)
        seen[share, None] = (candidates.scores(scorer, FINISH, step), step)
    finished = candidates.scores(scorer, FINISH, STEPS)
    made_with: dict[str, str | int] = {"n": candidates.n, "steps": STEPS, "model": "mini", "scorer": scorer.name}
    truth = candidates.scores(gold, FINISH, STEPS) if gold else finished
    return Recording(candidates.caption, made_with, finished, STEPS, seen, truth, SPACING)


def curve(recordings: Sequence[Recording]) -> tuple[np.ndarray, np.ndarray]:
    """What the pick of the first n is worth to the scorer that picks and by the truth, a mean over prompts for each n.

    As a share of the way from the mean candidate to the pick of all; the truth's ways are summed over prompts first.
    """
    own, others, most = [], [], []
    for recording in recordings:
        best = best_of_n.expected_best(recording.finished)
        own.append((best - best[0]) / (best[-1] - best[0]))
        worth = best_of_n.expected_best(recording.finished, recording.gold)
        others.append(worth - worth[0])
        most.append(worth[-1] - worth[0])
    return np.mean(own, axis=0), np.sum(others, axis=0) / np.sum(most)


def timed(prompts: Sequence[str], schedules: Mapping[str, Schedule], scorer: Scorer) -> dict[str, tuple[float, int]]:
    """Median seconds of each search over some prompts, taken in turn, and the evaluations that it spent on one."""
    from sp_rerank import generate

    pipe = load_pipe(SCHEDULER)
    seconds: dict[str, list[float]] = {}
    spent: dict[str, int] = {}
    with TemporaryDirectory() as folder:
        searches: dict[str, str | Path] = {EXHAUSTIVE: EXHAUSTIVE}
        for number, (name, schedule) in enumerate(schedules.items()):
            file = Path(folder) / f"{number}.toml"
            file.write_text(to_toml(schedule), encoding="utf-8")
            searches[name] = file
        for number, prompt in enumerate(["a warm-up", *prompts]):
            for place, (name, search) in enumerate(searches.items()):
                began, out = time.process_time(), Path(folder) / f"{number}-{place}"
                n = CANDIDATES if number else 2 * TOP_K
                generate(prompt, pipe=pipe, scorer=scorer, n=n, top_k=TOP_K, steps=STEPS, search=search, out=out)
                if number:
                    seconds.setdefault(name, []).append(time.process_time() - began)
                    spent[name] = RunDir.read(out).nfe
    return {name: (median(taken), spent[name]) for name, taken in seconds.items()}


@dataclass(frozen=True, slots=True)
class Steered:
    """What steering finds, against all candidates of the same prompts, finished by the other scheduler.

    Attributes:
        gain: of the pick: (its score - mean) / (best of all - mean).
        evaluations: spent a prompt.
        prompts: Number of prompts.
    """

    gain: Estimate
    evaluations: int
    prompts: int


def steered(recordings: Sequence[Recording], scorer: Scorer) -> Steered:
    """Steer as many particles as there are candidates, on each recorded prompt."""
    from sp_rerank import generate

    pipe, spent, picks = load_pipe(STOCHASTIC), 0, []
    with TemporaryDirectory() as folder:
        for number, recording in enumerate(recordings):
            out, n = Path(folder) / str(number), len(recording.finished)
            (best,) = generate(
                recording.prompt, pipe=pipe, scorer=scorer, n=n, top_k=1, steps=STEPS, search=STEERING, out=out
            )
            spent = RunDir.read(out).nfe
            picks.append(best.score)
    finished = np.array([recording.finished for recording in recordings])
    mean = finished.mean(axis=1)
    own = (np.array(picks) - mean) / (finished.max(axis=1) - mean)
    return Steered(agreement.ratio(own, np.ones(len(own))), spent, len(recordings))


@dataclass(frozen=True, slots=True)
class Asked:
    """What is measured.

    Attributes:
        out: Folder of the recordings.
        prompts: Prompts to measure on.
        jobs: Processes that record.
        scorer: Name of the scorer that selects.
        plan: File for the schedule that is chosen; None measures the one that ships.
        gain: What the schedule keeps of the pick on the prompts that choose it.
        top_gain: The same of the best four.
        truth: Whether the truth is asked.
        timed: Prompts on which the time is taken.
        steered: Prompts that are steered.
        figure: SVG file of score against evaluations.
    """

    out: Path
    prompts: int
    jobs: int
    scorer: str
    plan: Path | None
    gain: float
    top_gain: float
    truth: bool
    timed: int
    steered: int
    figure: Path | None


def measure(asked: Asked, progress: Callable[[str], None]) -> dict[str, Any]:
    """Record, plan, measure, and draw where a figure is asked for; the result is for a table or for programs."""
    from sp_rerank import load_scorer

    scorer, texts = load_scorer(asked.scorer), captions(asked.prompts)
    numbered = list(enumerate(texts))
    choosing = [Candidates(asked.out, *entry, CANDIDATES) for entry in numbered[:CHOOSING]]
    measuring = [Candidates(asked.out, *entry, CANDIDATES) for entry in numbered[CHOOSING:]]
    ways = [FINISH, *(Way(steps, SPACING) for steps in DRAFTS)]
    wanted = [*(choosing if asked.plan else []), *measuring]
    record_all([(candidates, way) for candidates in wanted for way in ways], asked.jobs, progress)
    schedule = read_schedule(shipped())
    if asked.plan:
        progress("choosing")
        schedule = _chosen([recording_of(candidates, scorer, DRAFTS) for candidates in choosing], asked)
        write(asked.plan, to_toml(schedule).encode())
    progress("acting out")
    truth = _truth() if asked.truth else None
    recordings = [recording_of(candidates, scorer, DRAFTS, truth) for candidates in measuring]
    schedules = {FAST: schedule, "halving": HALVING}
    found = {name: planner.estimate(each, recordings, TOP_K) for name, each in schedules.items()}
    clock = timed(texts[CHOOSING:][: asked.timed], schedules, scorer) if asked.timed else {}
    other = steered(recordings[: asked.steered], scorer) if asked.steered else None
    if asked.figure:
        write(asked.figure, draw(found, other, recordings, truth=asked.truth))
    correlations = {_shown(place): _correlation(recordings, place) for place in recordings[0].seen}
    return {
        "simulated": True,
        "scorer": scorer.name,
        "prompts": asked.prompts,
        "rank correlation with the finished score": correlations,
        **{
            f"{name}: {', '.join(map(describe, schedules[name].rounds))}": _figures(promise, clock, name, asked.truth)
            for name, promise in found.items()
        },
        **(_steered(other) if other else {}),
    }


def _truth() -> Any:
    from sp_rerank.train.mini.truth import Truth

    return Truth()


def _chosen(recordings: Sequence[Recording], asked: Asked) -> Schedule:
    return cheapest(recordings, TOP_K, gain=asked.gain, top_gain=asked.top_gain, strategies=("screening",))


def _shown(place: Place) -> str:
    at, after = place
    if at < 1:
        return f"preview after {at:.0%}"
    return f"draft of {at:g}" if after is None else f"draft of {at:g}, after {after}"


def _correlation(recordings: Sequence[Recording], place: Place) -> float:
    """Mean within-prompt rank correlation of what is seen at a place with the finished scores."""
    pairs = [(recording.seen[place][0], recording.finished) for recording in recordings]
    return round(float(np.mean([agreement.spearman(seen, finished).value for seen, finished in pairs])), 3)


def _figures(promise: PlanEstimate, clock: dict[str, tuple[float, int]], name: str, truth: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "gain of the pick, %": percent(promise.gain),
        "gain of the best four, %": percent(promise.top_gain),
        "the same pick, %": percent(promise.same_pick),
        "overlap of the best four, %": percent(promise.overlap),
        f"evaluations, fewer than all with {STEPS} steps": round(promise.saving, 2),
        f"evaluations, fewer than all with {DEFAULT_STEPS} steps": round(promise.saving * DEFAULT_STEPS / STEPS, 2),
        "images and previews decoded and scored, of all": round(promise.decodes, 2),
    }
    if truth:
        figures["worth of the pick by the truth, % of the pick of all"] = percent(promise.gold)
    if clock:
        seconds = clock[EXHAUSTIVE][0] / clock[name][0]
        figures["evaluations that the timed runs spent, fewer"] = round(clock[EXHAUSTIVE][1] / clock[name][1], 2)
        figures["CPU seconds, fewer"] = round(seconds, 2)
        figures["share of the saving that the clock sees"] = round((1 - 1 / seconds) / (1 - 1 / promise.saving), 2)
    return figures


def _steered(steered_run: Steered) -> dict[str, Any]:
    return {
        STEERING: {
            "gain of the pick, %": percent(steered_run.gain),
            f"evaluations, fewer than all with {STEPS} steps": round(STEPS * CANDIDATES / steered_run.evaluations, 2),
            "prompts": steered_run.prompts,
        }
    }


def draw(
    found: dict[str, PlanEstimate], other: Steered | None, recordings: Sequence[Recording], *, truth: bool
) -> bytes:
    """Gain against evaluations as SVG: the exhaustive curve, by the truth too, and each strategy on it."""
    picture = new_figure()
    axes = picture.add_subplot(xlabel="evaluations of the denoiser a prompt", ylabel="% of the way to the best of 100")
    own, gold = curve(recordings)
    evaluations = recordings[0].evaluations * np.arange(1, CANDIDATES + 1)
    axes.plot(evaluations, 100 * own, color="black", label="exhaustive, by the scorer's own")
    if truth:
        axes.plot(evaluations, 100 * gold, color="black", linestyle=":", label="exhaustive, by the truth's score")
    points = [(name, evaluations[-1] / promise.saving, promise.gain, promise.gold) for name, promise in found.items()]
    for (name, at, gain, worth), marker in zip(points, "os", strict=True):
        (dots,) = axes.plot([at], [100 * gain.value], marker, label=name)
        if truth:
            axes.plot([at], [100 * worth.value], marker, color=dots.get_color(), fillstyle="none")
    if other:
        axes.plot([other.evaluations], [100 * other.gain.value], "^", label=f"steering ({other.prompts} prompts)")
    axes.set_title(
        f"{len(recordings)} prompts, simulated" + ("; hollow: by the truth's score" if truth else ""), fontsize=10
    )
    axes.set_ylim(0, 124)
    axes.legend()
    return to_svg(picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/mini/search"), help="recordings, made where missing")
    parser.add_argument("--prompts", type=int, default=100, help="prompts to measure on")
    parser.add_argument("--jobs", type=int, default=2, help="processes that record, a core each")
    parser.add_argument("--scorer", default="stable-preference-mini", help="the one that selects")
    parser.add_argument("--plan", type=Path, help="choose a schedule and write it there  [default: the one that ships]")
    parser.add_argument("--gain", type=float, default=0.99, help="what it keeps where it is chosen")
    parser.add_argument("--top-gain", type=float, default=0.98, help="the same of the best four")
    parser.add_argument("--truth", action="store_true", help="ask the truth too")
    parser.add_argument("--timed", type=int, default=3, help="prompts on which the time is taken")
    parser.add_argument("--steered", type=int, default=0, help="prompts that are steered")
    parser.add_argument("--figure", type=Path, help="SVG file of score against evaluations")
    print(json.dumps(measure(Asked(**vars(parser.parse_args())), print), indent=1))
