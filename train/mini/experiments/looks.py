"""What there is to see of candidates on their way to the finish, made once and kept, scored as often as wanted.

The denoiser's predictions at every step of the run's own trajectories and of drafts are files of latents; what is
looked at is decoded once and kept as pixels; scores are kept by scorer. So a new scorer costs no step of the denoiser.
Knows the mini model and its candidates; knows no schedule.
"""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sp_rerank.diffusion.previews import Previews
from sp_rerank.diffusion.sampler import Sampler
from sp_rerank.diffusion.trajectory import open_trajectories
from sp_rerank.scorers.scoring import score_images
from sp_rerank.storage.atomic import write
from sp_rerank.types import Scorer

SEED = 13_000_000  # of the candidates; nothing else uses these
STEPS, SCHEDULER = 20, "DPMSolverMultistep"
GUIDANCE, BATCH = 2.5, 20


class Way(NamedTuple):
    """From the noise to an image.

    Attributes:
        steps: Number of scheduler steps.
        spacing: Of a draft, the exponent of its time steps; None for the run's own.
    """

    steps: int
    spacing: float | None = None

    @property
    def name(self) -> str:
        """For files: "final-20", "draft-6-0.8"."""
        return f"final-{self.steps}" if self.spacing is None else f"draft-{self.steps}-{self.spacing:g}"


FINISH = Way(STEPS)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The candidates of a prompt, and the files of what there is to see of them.

    Attributes:
        out: Folder of the files.
        number: Of the prompt; it decides the seeds.
        caption: The prompt.
        n: Number of candidates.
    """

    out: Path
    number: int
    caption: str
    n: int

    @property
    def seeds(self) -> dict[int, int]:
        """Index -> seed."""
        return {index: SEED + 1000 * self.number + index for index in range(self.n)}

    def _file(self, way: Way, suffix: str) -> Path:
        return self.out / f"{self.number:03}-{self.n}-{way.name}{suffix}.npy"

    def missing(self, ways: Sequence[Way]) -> list[Way]:
        """The ways that were not recorded yet."""
        return [way for way in ways if not self._file(way, "").is_file()]

    def record(self, way: Way) -> None:
        """Make the candidates and keep the predicted latents at each step; what is there is left alone."""
        if not self.missing([way]):
            return
        pipe = load_pipe(SCHEDULER)
        sampler = Sampler(pipe, self.caption, batch_size=BATCH, guidance_scale=GUIDANCE, num_inference_steps=STEPS)
        if way.spacing is not None:
            sampler = sampler.for_drafts(way.steps, way.spacing)
        rows: list[torch.Tensor] = []
        with open_trajectories(sampler, self.seeds, range(1, way.steps + 1)) as trajectories:
            for trajectory in trajectories:
                seen = [trajectory.advance_to(number).x0.half() for number in range(way.steps)]
                rows.append(torch.stack(seen))
                trajectory.close()  # the last prediction is the finished latents
        _keep(self._file(way, ""), torch.cat(rows, dim=1).numpy())

    def latents(self, way: Way) -> np.ndarray:
        """(steps, n, c, h, w) float16 predictions of the finished latents."""
        return np.load(self._file(way, ""), mmap_mode="r")

    def pixels(self, way: Way, step: int) -> np.ndarray:
        """(n, H, W, 3) uint8 images of what is predicted after a step, from 1 on."""
        file = self._file(way, f"@{step}")
        if not file.is_file():
            pipe = load_pipe(SCHEDULER)
            latents = torch.from_numpy(np.array(self.latents(way)[step - 1])).to(pipe.dtype)
            images = Previews(pipe).decode(latents)
            _keep(file, images.mul(255).round().byte().permute(0, 2, 3, 1).numpy())
        return np.load(file)

    def scores(self, scorer: Scorer, way: Way, step: int) -> np.ndarray:
        """(n,) scores of that, taken once."""
        folder = self.out / "scores" / re.sub(r"[^a-zA-Z0-9@.-]", "_", scorer.name)
        file = folder / f"{self.number:03}-{self.n}-{way.name}@{step}.json"
        if not file.is_file():
            images = torch.from_numpy(self.pixels(way, step)).permute(0, 3, 1, 2).float() / 255
            found = score_images(scorer, self.caption, images)
            folder.mkdir(parents=True, exist_ok=True)
            write(file, json.dumps([float(score) for score in found]).encode())
        return np.array(json.loads(file.read_text(encoding="utf-8")), float)


def _keep(file: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file, buffer.getvalue())


@functools.cache
def load_pipe(scheduler: str) -> Any:
    """The mini model with a scheduler, quiet."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    from sp_rerank import load_pipeline
    from sp_rerank.diffusion.loading import find_dtype

    diffusers_log.disable_progress_bar()
    transformers_log.disable_progress_bar()
    pipe = load_pipeline("mini", dtype=find_dtype("auto", "mini", "cpu"), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def record_all(asked: Sequence[tuple[Candidates, Way]], jobs: int, progress: Callable[[str], None]) -> None:
    """Record what is missing, a process a core, in the order that is asked for."""
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    missing = [(candidates, way) for candidates, way in asked if candidates.missing([way])]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(_record_one, candidates, way) for candidates, way in missing]
        for done, future in enumerate(as_completed(waiting), start=1):
            future.result()
            if done % 10 == 0 or done == len(waiting):
                progress(f"{done} of {len(missing)} recorded")


def _record_one(candidates: Candidates, way: Way) -> None:
    torch.set_num_threads(1)  # a process a core
    candidates.record(way)
