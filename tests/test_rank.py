"""Images that exist: a choice without near-copies, ties, and how the command says so. The rest is in test_cli.py."""

import json

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from sp_rerank import load_scorer
from sp_rerank.cli.rank import rank as command
from sp_rerank.errors import UsageError
from sp_rerank.rank import rank_files
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.scorers.calibration import ScorerCalibration


class ByLook(BrightnessScorer):
    """Brightness, with the mean colour as the embedding; counts the images that it embeds."""

    def __init__(self):
        self.embedded = 0

    def embed(self, images):
        self.embedded += len(images)
        return torch.tensor(np.array([np.asarray(image).mean((0, 1)) for image in images]))


@pytest.fixture
def files(tmp_path):
    """Three almost equal light reds, a blue, a dark green, fourteen that are darker still, and a file that is none."""
    colours = [(250, 180, 180), (250, 179, 180), (249, 180, 179), (120, 120, 250), (30, 130, 30)]
    for number, colour in enumerate([*colours, *np.random.default_rng(0).integers(0, 40, (14, 3)).tolist()]):
        Image.new("RGB", (6, 6), tuple(colour)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_text("no image")
    return [tmp_path / f"{number}.png" for number in range(19)] + [tmp_path / "broken.png"]


def test_a_diverse_choice_is_no_two_reds_and_shows_what_stands_back(files):
    scorer = ByLook()
    plain = rank_files([scorer], "x", files, 2)
    assert ([row.file.stem for row in plain.files], plain.cost, scorer.embedded) == (["0", "1"], 0, 0)
    chosen = rank_files([scorer], "x", files, 2, diverse=True)
    assert (len(chosen.unreadable), scorer.embedded) == (1, 19)
    assert [(row.file.stem, row.rank) for row in chosen.files] == [("0", 1), ("3", 4)]
    everything = rank_files([scorer], "x", files).files
    first, second, _, fourth = (row.scores["brightness"] for row in everything[:4])
    assert chosen.cost == pytest.approx((first + second) / 2 - (first + fourth) / 2)
    assert [everything[0], everything[3]] == chosen.files


def test_a_scorer_without_embeddings_says_so_before_it_scores(files):
    with pytest.raises(UsageError, match="scorer brightness has no embeddings of images"):
        rank_files([BrightnessScorer()], "x", files, 2, diverse=True)


APP = typer.Typer()
APP.command("rank")(command)


def run(files, *words):
    result = CliRunner().invoke(APP, [str(files[0].parent), "--prompt", "x", *words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command_says_what_a_diverse_choice_costs_and_what_ties(files, monkeypatch):
    monkeypatch.setattr("sp_rerank.cli.rank.load_scorer", lambda spec, model, device: ByLook())
    result = run(files, "--scorer", "look", "--top-k", "2", "--diverse")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["1", "4"]
    assert "no near-copies: ranks 1, 4; their mean score is 0.0" in result.stderr
    assert "no calibration: ties unknown" in result.stderr
    record = json.loads(run(files, "--scorer", "look", "--top-k", "2", "--diverse", "--json").stdout)
    assert [row["rank"] for row in record["ranking"]] == [1, 4]
    assert (record["cost"] > 0, record["calibrated"]) == (True, False)
    with pytest.raises(UsageError, match="say how many with --top-k"):
        run(files, "--scorer", "look", "--diverse")


def test_the_command_says_which_are_not_told_apart(files, monkeypatch):
    known = ScorerCalibration("brightness", 0.002, "d", 4, 0.0, True)
    monkeypatch.setattr("sp_rerank.scorers.calibration.calibration_of", lambda scorer: known)
    result = run(files, "--scorer", "brightness", "--top-k", "4")
    assert "the first 2 are not told apart: simulated people would differ about them" in result.stderr
    record = json.loads(run(files, "--scorer", "brightness", "--json", "--top-k", "4").stdout)
    assert record["calibrated"]
    assert [row["tie_group"] for row in record["ranking"]] == [1, 1, 2, 3]


def test_a_dual_encoder_embeds_images():
    scorer = load_scorer("clip-mini")
    greys = [Image.new("RGB", (20, 30 + i), (i, i, i)) for i in range(70)]  # more than one pass
    embedded = scorer.embed(greys)
    assert (embedded.shape, embedded.requires_grad) == ((70, scorer.config["embed_dim"]), False)
    assert torch.allclose(embedded.norm(dim=1), torch.ones(70), atol=1e-5)
    assert torch.allclose(embedded[65:], scorer.embed(greys[65:]), atol=1e-5)
