"""python -m sp_rerank.train.mini.experiments.search [--prompts 100] [--figure FILE]

What a search keeps and spares on the mini model, against all hundred candidates of the same seeds: prompts of the mini
world that no schedule was chosen by, every candidate at the stages of the schedules and finished, so that each of them
can be acted out on the same images. Two views: of the scorer that selects, and of the truth (`truth`), which does not.
clip-mini selects, and beside it stable-preference-mini, which learned to look through previews. Steering makes other
images than the seeds, so it is run on a few prompts and compared with all hundred of theirs. The seconds are measured
apart, on a few prompts, the strategies in turn. Everything is simulated.

The first prompts are recorded at every stage: `sp-rerank plan build/mini/search/0[01]?` made the schedule that ships
of them, with `--strategy halving` and `--scorer stable-preference-mini` the others. Recordings are made once and go on
after an interruption: an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sp_rerank.config import EXHAUSTIVE, FAST, STEERING, GenerationOptions, SearchPlan
from sp_rerank.report.tables import new_figure, percent, to_svg
from sp_rerank.run.folder import RunDir
from sp_rerank.run.writer import add_scores
from sp_rerank.scorers.scoring import score_images
from sp_rerank.search import planner
from sp_rerank.search.planner import PlanEstimate, Recording
from sp_rerank.search.schedule import Schedule, read_schedule, shipped, to_toml
from sp_rerank.stats import agreement, best_of_n
from sp_rerank.stats.agreement import Estimate
from sp_rerank.storage.atomic import write
from sp_rerank.train.mini.images import draw_captions
from sp_rerank.train.mini.truth import Truth

SEED = 13_000_000  # of the candidates; nothing else uses these
CANDIDATES, TOP_K = 100, 4
CHOOSING = 20  # prompts before those of the measurement, for `sp-rerank plan`
STEPS, SCHEDULER = 20, "DPMSolverMultistep"
DEFAULT_STEPS = 50  # of Stable Diffusion's own pipelines
SELECTING, NOISE_AWARE = "clip-mini", "stable-preference-mini"
HALVING = {
    SELECTING: Schedule("halving", ((0.4, 0.7), (0.55, 0.3))),
    NOISE_AWARE: Schedule("halving", ((0.4, 0.4), (0.55, 0.15))),
}
"""By scorer, of the schedules that look at .25, .4 and .55, the cheapest that keeps a share of the gain on the first
prompts: to clip-mini .98 for the pick and .96 for the best four, to stable-preference-mini .99 and .97."""

TIMED, STEERED = 3, 10  # prompts
STOCHASTIC = "EulerAncestralDiscrete"  # steering needs a scheduler that draws noise


def measured() -> dict[str, tuple[Schedule, str]]:
    """Schedules and the scorers that select, by the name of a row."""
    halvings = {f"halving, {scorer}": (schedule, scorer) for scorer, schedule in HALVING.items()}
    return {FAST: (read_schedule(shipped()), SELECTING), **halvings}


def captions(n: int) -> list[str]:
    """The prompts: CHOOSING to choose schedules by, then n to measure on."""
    return draw_captions(random.Random(SEED), CHOOSING + n, held_out=False, known=set())


def stages_of(schedules: Sequence[Schedule], decoder: str | None) -> SearchPlan:
    """The search that records what these schedules look at, and no more."""

    def places(strategy: str) -> list[Any]:
        return sorted({when for schedule in schedules if schedule.strategy == strategy for when, _ in schedule.rounds})

    return SearchPlan(
        strategy="recording",
        drafts=tuple(places("screening")),
        previews=tuple(places("halving")),
        decoder=decoder,
    )


def record(number: int, caption: str, out: Path) -> Path:
    """One prompt's candidates at their stages, in a run folder; a complete one is left alone."""
    import torch
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    from sp_rerank import load_scorer
    from sp_rerank.generate import Job, run_search
    from sp_rerank.search.resolve import resolve

    diffusers_log.disable_progress_bar()
    transformers_log.disable_progress_bar()
    torch.set_num_threads(1)  # a process a core
    pipe = _pipeline(SCHEDULER)
    scorer, folder = load_scorer(SELECTING), out / f"{number:03}"
    also = [load_scorer(NOISE_AWARE)]
    options = GenerationOptions(n=CANDIDATES, top_k=TOP_K, steps=STEPS, seed=SEED + 1000 * number, record=True)
    config = resolve(caption, options, pipe=pipe, scorer=scorer, also=also)
    if number >= CHOOSING:
        plan = stages_of([schedule for schedule, _ in measured().values()], config.search.decoder)
        config = replace(config, search=plan)
    run_search(Job(config, options, pipe, scorer, also), out=folder, resume=True)
    return folder


def make_recordings(out: Path, prompts: int, jobs: int, progress: Callable[[str], None]) -> list[Path]:
    """The recordings of all prompts, a process a core."""
    asked = captions(prompts)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(record, number, caption, out): number for number, caption in enumerate(asked)}
        for done, future in enumerate(as_completed(waiting), start=1):
            future.result()
            if done % 10 == 0:
                progress(f"{done} of {len(asked)} prompts recorded")
    return [out / f"{number:03}" for number in range(len(asked))]


def with_truth(folder: Path, truth: Truth) -> RunDir:
    """A recording with the truth's scores of the finished candidates, taken once."""
    run = RunDir.read(folder)
    if all(truth.name in row.scores for row in run.rows.values()):
        return run
    images = [run.read_image(index) for index in range(run.n)]
    scores = score_images(truth, run.config.prompt, images)
    return add_scores(folder, {truth.name: dict(enumerate(scores))})


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


def gain_by_truth(recordings: Sequence[Recording]) -> Estimate:
    """How far the scorer's pick of all goes from the truth's mean candidate by the truth's best of all."""
    return agreement.ratio(
        _worths_of_picks(recordings), [recording.gold.max() - recording.gold.mean() for recording in recordings]
    )


def _worths_of_picks(recordings: Sequence[Recording]) -> list[float]:
    """What the pick of all is worth by the truth above the mean candidate, a number a prompt."""
    return [recording.gold[int(np.nanargmax(recording.finished))] - recording.gold.mean() for recording in recordings]


def _pipeline(scheduler: str) -> Any:
    from sp_rerank import load_pipeline
    from sp_rerank.diffusion.loading import find_dtype

    return load_pipeline("mini", dtype=find_dtype("auto", "mini", "cpu"), scheduler=scheduler)


def timed(prompts: Sequence[str]) -> dict[str, tuple[float, int]]:
    """Median seconds of each search over some prompts, taken in turn, and the evaluations that it spent on one."""
    from sp_rerank import generate, load_scorer

    pipe = _pipeline(SCHEDULER)
    scorers = {name: load_scorer(name) for name in HALVING}
    seconds: dict[str, list[float]] = {}
    spent: dict[str, int] = {}
    with TemporaryDirectory() as folder:
        searches: dict[str, tuple[str | Path, str]] = {EXHAUSTIVE: (EXHAUSTIVE, SELECTING)}
        for number, (name, (schedule, scorer)) in enumerate(measured().items()):
            file = Path(folder) / f"{number}.toml"
            file.write_text(to_toml(schedule), encoding="utf-8")
            searches[name] = file, scorer
        for number, prompt in enumerate(["a warm-up", *prompts]):
            for place, (name, (search, scorer)) in enumerate(searches.items()):
                began, out = time.perf_counter(), Path(folder) / f"{number}-{place}"
                n = CANDIDATES if number else 2 * TOP_K
                generate(
                    prompt, pipe=pipe, scorer=scorers[scorer], n=n, top_k=TOP_K, steps=STEPS, search=search, out=out
                )
                if number:
                    seconds.setdefault(name, []).append(time.perf_counter() - began)
                    spent[name] = RunDir.read(out).nfe
    return {name: (median(taken), spent[name]) for name, taken in seconds.items()}


@dataclass(frozen=True, slots=True)
class Steered:
    """What steering finds, against all candidates of the same prompts, finished by the other scheduler.

    Attributes:
        gain: of the pick: (its score - mean) / (best of all - mean).
        gold: The same by the truth's score, summed over prompts first, over that of the pick of all.
        evaluations: spent a prompt.
    """

    gain: Estimate
    gold: Estimate
    evaluations: int


def steered(recordings: Sequence[Recording], truth: Truth) -> Steered:
    """Steer as many particles as there are candidates, on each recorded prompt."""
    from sp_rerank import generate, load_scorer

    pipe = _pipeline(STOCHASTIC)
    scorer, spent, picks, worths = load_scorer(SELECTING), 0, [], []
    with TemporaryDirectory() as folder:
        for number, recording in enumerate(recordings):
            out = Path(folder) / str(number)
            (best,) = generate(
                recording.prompt, pipe=pipe, scorer=scorer, n=CANDIDATES, top_k=1, steps=STEPS, search=STEERING, out=out
            )
            spent = RunDir.read(out).nfe
            picks.append(best.score)
            worths.append(float(truth.score(recording.prompt, [best.candidate.image])[0]))
    finished, judged = (
        np.array([getattr(recording, name) for recording in recordings]) for name in ("finished", "gold")
    )
    mean = finished.mean(axis=1)
    own = (np.array(picks) - mean) / (finished.max(axis=1) - mean)
    way = np.array(worths) - judged.mean(axis=1)
    return Steered(agreement.ratio(own, np.ones(len(own))), agreement.ratio(way, _worths_of_picks(recordings)), spent)


def compare_search(
    out: Path, prompts: int, jobs: int, figure: Path | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Measure, and draw where a figure is asked for; what is returned is for a table or for programs."""
    folders = make_recordings(out, prompts, jobs, progress)[CHOOSING:]
    progress("asking the truth")
    truth = Truth()
    runs = [with_truth(folder, truth) for folder in folders]
    recordings = {
        scorer: [planner.read_recording(run, truth.name, scorer=scorer) for run in runs] for scorer in HALVING
    }
    found = {
        name: planner.estimate(schedule, recordings[scorer], TOP_K) for name, (schedule, scorer) in measured().items()
    }
    progress("steering")
    other = steered(recordings[SELECTING][:STEERED], truth)
    progress("taking the time")
    clock = timed([recording.prompt for recording in recordings[SELECTING][:TIMED]])
    if figure:
        write(figure, draw(found, other, recordings[SELECTING]))
    return {"simulated": True, "prompts": prompts, **_figures(found, clock, recordings), **_steered(other)}


def _figures(
    found: dict[str, PlanEstimate], clock: dict[str, tuple[float, int]], recordings: Mapping[str, Sequence[Recording]]
) -> dict[str, Any]:
    figures: dict[str, Any] = {
        f"the pick of all by the truth, % of the way to its own, {scorer}": percent(gain_by_truth(some))
        for scorer, some in recordings.items()
    }
    own = recordings[SELECTING][0].evaluations
    for name, promise in found.items():
        seconds = clock[EXHAUSTIVE][0] / clock[name][0]
        figures[name] = {
            "gain of the pick, %": percent(promise.gain),
            "gain of the best four, %": percent(promise.top_gain),
            "the same pick, %": percent(promise.same_pick),
            "overlap of the best four, %": percent(promise.overlap),
            "worth of the pick by the truth, % of the pick of all": percent(promise.gold),
            f"evaluations, fewer than all with {STEPS} steps": round(promise.saving, 2),
            f"evaluations, fewer than all with {DEFAULT_STEPS} steps": round(promise.saving * DEFAULT_STEPS / own, 2),
            "images and previews decoded and scored, of all": round(promise.decodes, 2),
            "evaluations that the timed runs spent, fewer": round(clock[EXHAUSTIVE][1] / clock[name][1], 2),
            "seconds, fewer": round(seconds, 2),
            "share of the saving that the clock sees": round((1 - 1 / seconds) / (1 - 1 / promise.saving), 2),
        }
    return figures


def _steered(steered_run: Steered) -> dict[str, Any]:
    return {
        STEERING: {
            "gain of the pick, %": percent(steered_run.gain),
            "worth of the pick by the truth, % of the pick of all": percent(steered_run.gold),
            f"evaluations, fewer than all with {STEPS} steps": round(STEPS * CANDIDATES / steered_run.evaluations, 2),
            "prompts": STEERED,
        }
    }


def draw(found: dict[str, PlanEstimate], other: Steered, recordings: Sequence[Recording]) -> bytes:
    """Gain against evaluations as SVG: the exhaustive curve by both scores, and each strategy on it."""
    picture = new_figure()
    axes = picture.add_subplot(xlabel="evaluations of the denoiser a prompt", ylabel="% of the way to the best of 100")
    own, truth = curve(recordings)
    evaluations = recordings[0].evaluations * np.arange(1, CANDIDATES + 1)
    axes.plot(evaluations, 100 * own, color="black", label="exhaustive, by the scorer's own")
    axes.plot(evaluations, 100 * truth, color="black", linestyle=":", label="exhaustive, by the truth's score")
    points = [(name, evaluations[-1] / promise.saving, promise.gain, promise.gold) for name, promise in found.items()]
    points.append((f"steering ({STEERED} prompts)", other.evaluations, other.gain, other.gold))
    for (name, at, gain, worth), marker in zip(points, "osD^", strict=True):
        (dots,) = axes.plot([at], [100 * gain.value], marker, label=name)
        axes.plot([at], [100 * worth.value], marker, color=dots.get_color(), fillstyle="none")
    axes.set_title(f"{len(recordings)} prompts, simulated; hollow: by the truth's score", fontsize=10)
    axes.set_ylim(0, 124)
    axes.legend()
    return to_svg(picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/mini/search"), help="recordings, made where missing")
    parser.add_argument("--prompts", type=int, default=100, help="prompts to measure on")
    parser.add_argument("--jobs", type=int, default=2, help="processes that record, a core each")
    parser.add_argument("--figure", type=Path, help="SVG file of score against evaluations")
    args = parser.parse_args()
    print(json.dumps(compare_search(args.out, args.prompts, args.jobs, args.figure, print), indent=1))
