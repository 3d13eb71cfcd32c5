"""Worlds that worker processes load by their names: a pipeline without a model, and prompts that break a worker.

A line of the file that ATTEMPTS names is written for every prompt that is begun.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.scorers.ensemble import MeanRank
from support.doubles import SeededPipe

ATTEMPTS = "SP_RERANK_TEST_ATTEMPTS"
PAUSE = "SP_RERANK_TEST_PAUSE"  # seconds of a call
DTYPE = "SP_RERANK_TEST_DTYPE"


class PoisonedPipe(SeededPipe):
    """A `SeededPipe` that does what the prompt says: raise, exit, hang, lose the accelerator."""

    def __call__(
        self, prompt, num_inference_steps=5, guidance_scale=7.5, num_images_per_prompt=1, generator=None,
        output_type="pt", return_dict=True, height=None, width=None,
    ):  # fmt: skip
        several = dict.fromkeys([prompt] if isinstance(prompt, str) else prompt)
        for each in several:
            note(each)
        time.sleep(float(os.environ.get(PAUSE, "0")))
        for each in several:
            act(each)
        return super().__call__(prompt, num_inference_steps, guidance_scale, num_images_per_prompt, generator)


def note(prompt):
    if os.environ.get(ATTEMPTS):
        with Path(os.environ[ATTEMPTS]).open("a") as file:
            file.write(f"{os.getpid()} {prompt}\n")


def act(prompt):
    if prompt == "raise":
        raise ValueError("this prompt cannot be drawn")
    if prompt == "exit":
        os._exit(11)
    if prompt == "hang":
        time.sleep(600)
    if prompt == "lose":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def poisoned():
    pipe = PoisonedPipe()
    pipe.dtype = getattr(torch, os.environ.get(DTYPE, "float32"))
    return pipe, BrightnessScorer(), []


class Darkness(BrightnessScorer):
    """The darker, the better."""

    name = "darkness"

    def score(self, prompt, images):
        return -super().score(prompt, images)


def poisoned_by_two():
    """Ranked by two scorers that never agree."""
    return PoisonedPipe(), MeanRank([BrightnessScorer(), Darkness()]), []


def stillborn():
    """A world whose worker dies while it starts."""
    note("start")
    os._exit(9)
