"""Compiled networks are called wherever the pipeline's are, in whole batches, and the run says so."""

import pytest
import torch
import typer
from support.doubles import SeededPipe
from support.tiny import build_sd_pipeline
from typer.testing import CliRunner

from sp_rerank import generate
from sp_rerank.batch.order import Models
from sp_rerank.cli import batch
from sp_rerank.diffusion.compiling import compile_networks, is_compiled
from sp_rerank.diffusion.sampler import Sampler
from sp_rerank.diffusion.trajectory import open_trajectories
from sp_rerank.scorers.brightness import BrightnessScorer


class Counting:
    """A backend of torch.compile that computes as before, and counts the calls of what it compiled."""

    def __init__(self):
        self.sizes = []

    def __call__(self, graph, examples):
        def call(*args):
            self.sizes.append(len(args))
            return graph.forward(*args)

        return call


def test_a_batch_of_a_compiled_pipeline_is_filled_up():
    plain, pipe = SeededPipe(), SeededPipe(flagged=[8])
    compile_networks(pipe, backend="eager")
    seeds = {index: index + 1 for index in range(10)}
    (expected,), made = (
        list(Sampler(plain, "x", batch_size=10).batches(seeds)),
        list(Sampler(pipe, "x", batch_size=4).batches(seeds)),
    )
    assert pipe.made == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 10, 10]]
    assert [batch.seeds for batch in made] == [(1, 2, 3, 4), (5, 6, 7, 8), (9, 10)]
    assert torch.equal(torch.cat([batch.images for batch in made])[8:], expected.images[8:])
    assert [flag for batch in made for flag in batch.flagged] == [index == 7 for index in range(10)]


def test_a_run_is_another_run_when_it_is_compiled(tmp_path):
    def run(folder, compiled):
        pipe = SeededPipe()
        if compiled:
            compile_networks(pipe, backend="eager")
        return generate("x", pipe=pipe, scorer=BrightnessScorer(), n=6, batch_size=4, steps=2, out=tmp_path / folder)

    run("plain", False)
    run("compiled", True)
    plain, compiled = ((tmp_path / name / "run.json").read_text() for name in ("plain", "compiled"))
    assert "compiled" not in plain
    assert '"compiled": true' in compiled
    with pytest.raises(Exception, match="compiled"):
        run("plain", True)


def test_a_trajectory_calls_the_compiled_denoiser():
    backend, pipe = Counting(), build_sd_pipeline()
    compile_networks(pipe, backend=backend)
    assert is_compiled(pipe)
    sampler = Sampler(pipe, "a lemon", batch_size=2, guidance_scale=1.0, num_inference_steps=4)
    with open_trajectories(sampler, {0: 1, 1: 2}, [2]) as (trajectory,):
        trajectory.advance_to(0)
        halfway = len(backend.sizes)
        trajectory.prune(0, [0])
        batch = trajectory.finish()
    assert halfway > 0
    assert len(backend.sizes) > halfway
    assert batch.images.shape[0] == 1


def test_the_models_of_a_batch_are_compiled_where_that_is_asked():
    for compiled in (False, True):
        pipe, *_ = Models("mini", "brightness", compiled=compiled).load()
        assert is_compiled(pipe) == compiled


def test_batch_make_takes_compile(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(batch, "_run", lambda made, as_json: asked.append(made))
    app = typer.Typer()
    app.command("make")(batch.make)
    (tmp_path / "prompts.txt").write_text("a lemon\n")
    words = [str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out"), "--model", "mini", "--scorer", "brightness"]
    for more in ([], ["--compile"]):
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == 0, result.output
    assert [made.models.compiled for made in asked] == [False, True]
