"""sp-rerank bench search [--out build/mini/search] [--prompts 100]

What a search keeps and spares on the mini model, against all hundred candidates of the same seeds: prompts of the mini
world that no schedule was chosen by, every candidate at the stages of the schedules and finished, so that each of them
can be acted out on the same images. Two opinions: of clip-mini, which selects, and of the judge, which does not. The
seconds are measured apart, on a few prompts, the strategies in turn. Everything is simulated.

The first prompts are recorded at every stage: `sp-rerank plan build/mini/search/0[01]?` made the schedule that ships
of them. Recordings are made once and go on after an interruption: an hour on two cores.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sp_rerank import agreement, planning
from sp_rerank.durable import write
from sp_rerank.images import open_image
from sp_rerank.planning import Promise, Recording
from sp_rerank.report.results import new_figure, percent, to_svg
from sp_rerank.run import RunDir, add_scores
from sp_rerank.search.schedule import EXHAUSTIVE, FAST, Schedule, read_schedule, shipped, to_toml
from sp_rerank.train.mini.annotators import draw_captions
from sp_rerank.train.mini.judge import Judge, load_judge

SEED = 13_000_000  # of the candidates; nothing else uses these
CANDIDATES, TOP_K = 100, 4
CHOOSING = 20  # prompts before those of the measurement, for `sp-rerank plan`
STEPS, SCHEDULER = 20, "DPMSolverMultistep"
DEFAULT_STEPS = 50  # of Stable Diffusion's own pipelines
HALVING = Schedule("halving", ((0.4, 0.7), (0.55, 0.3)))
"""The cheapest that keeps .98 of the gain of the pick and .96 of that of the best four on the first prompts."""

TIMED = 3  # prompts


def schedules() -> dict[str, Schedule]:
    """What is measured, by name."""
    return {FAST: read_schedule(shipped()), "halving": HALVING}


def captions(n: int) -> list[str]:
    """The prompts: CHOOSING to choose schedules by, then n to measure on."""
    return draw_captions(random.Random(SEED), CHOOSING + n, held_out=False, known=set())


def stages_of(schedules: Sequence[Schedule]) -> dict[str, Any]:
    """The search that records what these schedules look at, and no more."""

    def places(strategy: str) -> list[Any]:
        return sorted({when for one in schedules if one.strategy == strategy for when, _ in one.rounds})

    return {"strategy": "recording", "drafts": places("screening"), "previews": places("halving")}


def record(number: int, caption: str, out: Path) -> Path:
    """One prompt's candidates at their stages, in a run folder; a complete one is left alone."""
    import torch
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    from sp_rerank import load_pipeline, load_scorer
    from sp_rerank.configuration import configure
    from sp_rerank.generation import carry_out
    from sp_rerank.models import find_dtype

    diffusers_log.disable_progress_bar()
    transformers_log.disable_progress_bar()
    torch.set_num_threads(1)  # a process a core
    pipe = load_pipeline("mini", dtype=find_dtype("auto", "mini", "cpu"), scheduler=SCHEDULER)
    scorer, folder = load_scorer("clip-mini"), out / f"{number:03}"
    config = configure(
        caption,
        pipe=pipe,
        scorer=scorer,
        n=CANDIDATES,
        top_k=TOP_K,
        steps=STEPS,
        seed=SEED + 1000 * number,
        record=True,
    )
    if number >= CHOOSING:
        config["search"] = stages_of(list(schedules().values()))
    carry_out(config, pipe=pipe, scorer=scorer, top_k=TOP_K, out=folder, resume=True)
    return folder


def make_recordings(out: Path, prompts: int, jobs: int, say: Callable[[str], None]) -> list[Path]:
    """The recordings of all prompts, a process a core."""
    asked = captions(prompts)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(record, number, caption, out): number for number, caption in enumerate(asked)}
        for done, future in enumerate(as_completed(waiting), start=1):
            future.result()
            if done % 10 == 0:
                say(f"{done} of {len(asked)} prompts recorded")
    return [out / f"{number:03}" for number in range(len(asked))]


def judged(folder: Path, judge: Judge) -> RunDir:
    """A recording with what the judge thinks of the finished candidates, asked once."""
    run = RunDir.read(folder)
    if all(judge.name in row.scores for row in run.rows.values()):
        return run
    images = [open_image(run.image(index)) for index in range(run.n)]
    scores = judge.score(run.config["prompt"], images).tolist()
    return add_scores(folder, {judge.name: dict(enumerate(scores))})


def curve(recordings: Sequence[Recording]) -> tuple[np.ndarray, np.ndarray]:
    """What the pick of the first n is worth to the scorer that picks and to the judge, a mean over prompts for each n.

    As a share of the way from the mean candidate to the pick of all; the judge's ways are summed over prompts first.
    """
    own, others, most = [], [], []
    for one in recordings:
        best = agreement.best_of_n(one.finished)
        own.append((best - best[0]) / (best[-1] - best[0]))
        worth = agreement.best_of_n(one.finished, one.worth)
        others.append(worth - worth[0])
        most.append(worth[-1] - worth[0])
    return np.mean(own, axis=0), np.sum(others, axis=0) / np.sum(most)


def timed(searches: Sequence[tuple[str, Any]], prompts: Sequence[str]) -> dict[str, tuple[float, int]]:
    """Median seconds of each search over some prompts, taken in turn, and the evaluations that it spent on one."""
    from sp_rerank import generate, load_pipeline, load_scorer
    from sp_rerank.models import find_dtype

    pipe = load_pipeline("mini", dtype=find_dtype("auto", "mini", "cpu"), scheduler=SCHEDULER)
    scorer, seconds = load_scorer("clip-mini"), {name: [] for name, _ in searches}
    spent: dict[str, int] = {}
    with TemporaryDirectory() as folder:
        for number, prompt in enumerate(["a warm-up", *prompts]):
            for place, (name, search) in enumerate(searches):
                began, out = time.perf_counter(), Path(folder) / f"{number}-{place}"
                n = CANDIDATES if number else 2 * TOP_K
                generate(prompt, pipe=pipe, scorer=scorer, n=n, top_k=TOP_K, steps=STEPS, search=search, out=out)
                if number:
                    seconds[name].append(time.perf_counter() - began)
                    spent[name] = RunDir.read(out).spent
    return {name: (median(taken), spent[name]) for name, taken in seconds.items()}


def compare_search(
    out: Path, prompts: int, jobs: int, figure: Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure, and draw where a figure is asked for; what is returned is for a table or for programs."""
    folders = make_recordings(out, prompts, jobs, say)[CHOOSING:]
    say("asking the judge")
    judge = load_judge()
    recordings = [planning.read_recording(judged(folder, judge), worth=judge.name) for folder in folders]
    found = {name: planning.promise(one, recordings, TOP_K) for name, one in schedules().items()}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "halving.toml"
        file.write_text(to_toml(HALVING), encoding="utf-8")
        searches = [("exhaustive", EXHAUSTIVE), ("fast", FAST), ("halving", file)]
        clock = timed(searches, [one.prompt for one in recordings[:TIMED]])
    if figure:
        write(figure, draw(found, recordings))
    return {"simulated": True, "prompts": len(recordings), **_figures(found, clock, recordings)}


def _figures(
    found: dict[str, Promise], clock: dict[str, tuple[float, int]], recordings: Sequence[Recording]
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    own = recordings[0].evaluations
    for name, one in found.items():
        seconds = clock["exhaustive"][0] / clock[name][0]
        figures[name] = {
            "gain of the pick, %": percent(one.gain),
            "gain of the best four, %": percent(one.top_gain),
            "the same pick, %": percent(one.same_pick),
            "overlap of the best four, %": percent(one.overlap),
            "worth of the pick to the judge, % of the pick of all": percent(one.worth),
            f"evaluations, fewer than all with {STEPS} steps": round(one.saving, 2),
            f"evaluations, fewer than all with {DEFAULT_STEPS} steps": round(one.saving * DEFAULT_STEPS / own, 2),
            "images and previews decoded and scored, of all": round(one.decodes, 2),
            "evaluations that the timed runs spent, fewer": round(clock["exhaustive"][1] / clock[name][1], 2),
            "seconds, fewer": round(seconds, 2),
            "share of the saving that the clock sees": round((1 - 1 / seconds) / (1 - 1 / one.saving), 2),
        }
    return figures


def draw(found: dict[str, Promise], recordings: Sequence[Recording]) -> bytes:
    """Gain against evaluations as SVG: the exhaustive curve of both opinions, and each strategy on it."""
    picture = new_figure()
    axes = picture.add_subplot(xlabel="evaluations of the denoiser a prompt", ylabel="% of the way to the best of 100")
    own, judge = curve(recordings)
    evaluations = recordings[0].evaluations * np.arange(1, CANDIDATES + 1)
    axes.plot(evaluations, 100 * own, color="black", label="exhaustive, as clip-mini sees it")
    axes.plot(evaluations, 100 * judge, color="black", linestyle=":", label="exhaustive, as the judge sees it")
    for (name, one), marker in zip(found.items(), "osD^", strict=False):
        at = evaluations[-1] / one.saving
        (dots,) = axes.plot([at], [100 * one.gain.value], marker, label=name)
        axes.plot([at], [100 * one.worth.value], marker, color=dots.get_color(), fillstyle="none")
    axes.set_title(f"{len(recordings)} prompts, simulated; hollow: as the judge sees it", fontsize=10)
    axes.set_ylim(0, 104)
    axes.legend()
    return to_svg(picture)
