"""Candidates made again: several at once, larger, and what cannot be."""

from __future__ import annotations

import pytest
from support.doubles import SeededPipe
from support.runs import row_of, run_config
from support.tiny import build_sd_pipeline

from sp_rerank.errors import OptionError, UsageError
from sp_rerank.generate import generate
from sp_rerank.replay import Replays, replay
from sp_rerank.run.folder import RunDir
from sp_rerank.run.writer import RunWriter
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.storage.images import open_image, read_record


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = {"n": 5, "batch_size": 4, "steps": 2, "guidance_scale": 2.0, "seed": 7}
    generate("a lemon", pipe=build_sd_pipeline(), scorer=BrightnessScorer(), out=folder, **settings)
    return RunDir.read(folder)


def test_candidates_of_one_batch_are_made_together(tmp_path):
    settings = {"n": 9, "batch_size": 4, "guidance_scale": 1.0}
    generate("a lemon", pipe=SeededPipe(), scorer=BrightnessScorer(), out=tmp_path / "run", **settings)
    pipe = SeededPipe()
    again = Replays(RunDir.read(tmp_path / "run"), pipe)
    assert [again.write(index, tmp_path / f"{index}.png") for index in (1, 3, 8)] == [True] * 3
    assert pipe.made == [[0, 1, 2, 3], [8]]


def test_larger_tells_how_it_was_made(run, tmp_path):
    pipe = build_sd_pipeline()
    again = Replays(run, pipe, scale=2, strength=0.5)
    assert [again.write(index, tmp_path / f"{index}.png") for index in (1, 4)] == [None, None]
    image, record = open_image(tmp_path / "4.png"), read_record(tmp_path / "4.png")
    assert image.size == (32, 32)
    assert record is not None
    assert (record["index"], record["seed"], record["scale"], record["strength"]) == (4, 11, 2, 0.5)
    from PIL import Image

    with Image.open(tmp_path / "4.png") as file:
        assert str(file.info["parameters"]).endswith("Size: 32x32, Model: in memory, Denoising strength: 0.5")
    assert image.tobytes() == replay(run, 4, pipe=build_sd_pipeline(), scale=2, strength=0.5).tobytes()


def test_larger_begins_with_the_image_of_the_folder(run):
    """Of 1 % there is nothing to see: the image scaled up, as far as its autoencoder keeps it."""
    small = run.read_image(2)
    made = replay(run, 2, pipe=build_sd_pipeline(), steps=100, scale=1, strength=0.01)
    again = replay(run, 2, pipe=build_sd_pipeline(), scale=1, strength=1.0)
    assert made.size == again.size == small.size
    assert made.tobytes() != again.tobytes()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": 0.5}, "scale is 0.5; expected a number from 1 to 8"),
        ({"scale": 9}, "scale is 9; expected a number from 1 to 8"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": 2, "strength": 0.0}, "strength is 0.0; expected a number above 0, at most 1"),
        ({"scale": 2, "strength": 1.5}, "strength is 1.5"),
    ],
)
def test_wrong_numbers(run, wrong, message):
    with pytest.raises(OptionError, match=message):
        Replays(run, SeededPipe(), **wrong)


def test_an_image_that_is_none_is_not_made_larger(tmp_path):
    with RunWriter.start(tmp_path / "run", run_config(2)) as written:
        written.commit([(row_of(b"x", 0, status="flagged"), b"x")])
    with pytest.raises(UsageError, match=r"candidate 0 of .*run is flagged: there is no image of it"):
        replay(RunDir.read(tmp_path / "run"), 0, pipe=build_sd_pipeline(), scale=2)
    with pytest.raises(UsageError, match="holds no candidate 1"):
        replay(RunDir.read(tmp_path / "run"), 1, pipe=build_sd_pipeline(), scale=2)
