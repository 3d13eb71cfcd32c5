"""Several scorers as one: the mean of their ranks over all images of a prompt, or a weighted sum that is a scorer."""

from __future__ import annotations

import json
import math

import pytest
import torch
from PIL import Image, ImageStat
from support.doubles import SeededPipe
from support.runs import files_of

from sp_rerank.compare.compare import compare
from sp_rerank.errors import OptionError, UsageError
from sp_rerank.generate import generate
from sp_rerank.rank import rank, rank_files
from sp_rerank.run.folder import RunDir
from sp_rerank.scorers import load_scorer
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.scorers.check import check_scorer
from sp_rerank.scorers.ensemble import MeanRank, WeightedSum, load_ensemble
from sp_rerank.stats import ranking

SETTINGS = {"n": 20, "batch_size": 8, "guidance_scale": 1.0}


class Channel:
    """The mean of one color channel."""

    def __init__(self, name, channel, factor=1.0):
        self.name, self.channel, self.factor = name, channel, factor

    def score(self, prompt, images):
        if not isinstance(images, torch.Tensor):
            means = [ImageStat.Stat(image).mean[self.channel] / 255 for image in images]
            return self.factor * torch.tensor(means)
        return self.factor * images[:, self.channel].mean(dim=(1, 2)).cpu()


RED, GREEN = Channel("red@1", 0, factor=1000.0), Channel("green@2", 1)


def run(folder, pipe=None, scorer=None, **more):
    scorer = MeanRank([RED, GREEN]) if scorer is None else scorer
    return generate("a lemon", pipe=pipe or SeededPipe(), scorer=scorer, out=folder, **{**SETTINGS, **more})


def expected_order(n, seed=0):
    """By the mean rank of red and green over all images of the pipeline."""
    images = [torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed + i)) for i in range(n)]
    columns = [[image[channel].mean().item() for image in images] for channel in (0, 1)]
    means = ranking.mean_ranks(columns)
    return ranking.order([-mean for mean in means]), means


def test_a_run_is_ranked_by_the_mean_rank_over_all_batches(tmp_path):
    result = run(tmp_path / "run")
    order, means = expected_order(20)
    assert [entry.candidate.index for entry in result] == order[:4]
    assert [entry.score for entry in result] == [-means[index] for index in order[:4]]
    folder = RunDir.read(tmp_path / "run")
    assert folder.config.scorers == ("red@1+green@2", "red@1", "green@2")
    assert {index: row.scores["red@1+green@2"] for index, row in folder.rows.items()} == {
        index: -mean for index, mean in enumerate(means)
    }
    assert folder.verify() == []
    assert "red+green" in (tmp_path / "run" / "index.html").read_text()


def test_scales_do_not_matter_and_memory_gives_the_same(tmp_path):
    written, kept = run(tmp_path / "run"), run(None)
    assert [(r.seed, r.score) for r in written] == [(r.seed, r.score) for r in kept]
    assert [r.image.tobytes() for r in written] == [r.image.tobytes() for r in kept]


def test_cut_short_and_grown_it_is_the_run_at_once(tmp_path):
    run(tmp_path / "whole", n=40)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", n=16, stop=lambda: True)
    run(tmp_path / "cut", n=16, resume=True)
    run(tmp_path / "cut", more=24)
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_a_score_that_is_not_finite_is_not_ranked(tmp_path):
    class Fails(Channel):
        def score(self, prompt, images):
            scores = super().score(prompt, images)
            scores[0] = math.nan
            return scores

    run(tmp_path / "run", scorer=MeanRank([RED, Fails("green@2", 1)]))
    rows = RunDir.read(tmp_path / "run").rows
    unranked = [index for index, row in rows.items() if row.scores["red@1+green@2"] is None]
    assert unranked == [0, 8, 16]  # of each batch the first


@pytest.mark.parametrize("more", [{"search": "fast"}, {"search": "steering"}, {"record": True}])
def test_a_search_that_compares_on_the_way_is_refused(tmp_path, more):
    with pytest.raises(OptionError, match="a mean of ranks needs all candidates; take one scorer, or weights"):
        run(tmp_path / "run", **more)
    assert not (tmp_path / "run").exists()


def test_files_and_images_are_ranked_by_it(tmp_path):
    colors = [(10, 200, 0), (20, 100, 0), (200, 90, 0), (90, 90, 90)] + [(i, i, i) for i in range(20)]
    pictures = [Image.new("RGB", (8, 8), color) for color in colors]
    for place, picture in enumerate(pictures):
        picture.save(tmp_path / f"{place:02d}.png")
    files = sorted(tmp_path.glob("*.png"))
    found = rank_files([MeanRank([RED, GREEN])], "x", files)
    means = ranking.mean_ranks([[c[0] for c in colors], [c[1] for c in colors]])
    order = ranking.order([-mean for mean in means])
    assert [int(entry.file.stem) for entry in found.files] == order
    assert list(found.files[0].scores) == ["red@1+green@2", "red@1", "green@2"]
    assert [entry.candidate.index for entry in rank(MeanRank([RED, GREEN]), "x", pictures)] == order


def test_elsewhere_it_says_what_to_take(tmp_path):
    with pytest.raises(UsageError, match=r"needs all images of a prompt.*give weights: 1\*red\+1\*green"):
        MeanRank([RED, GREEN]).score("x", [Image.new("RGB", (8, 8))])
    run(tmp_path / "run")
    with pytest.raises(UsageError, match="is a mean of ranks; name its scorers one by one"):
        compare([RunDir.read(tmp_path / "run")], [MeanRank([RED, GREEN])])


def test_a_comparison_counts_each_scorer_once(tmp_path):
    run(tmp_path / "run", n=7)
    (found,) = compare([RunDir.read(tmp_path / "run")]).runs
    assert [view.scorer for view in found.views] == ["red@1", "green@2", "red@1+green@2"]
    assert list(found.ensemble) == ranking.order([-mean for mean in expected_order(7)[1]])


def test_weights_make_a_scorer_like_any_other(tmp_path):
    weighted = WeightedSum([RED, GREEN], [0.002, -1.0])
    assert weighted.name == "0.002*red@1+-1*green@2"
    images = torch.rand(5, 3, 8, 8)
    expected = 0.002 * RED.score("", images) - GREEN.score("", images)
    assert torch.equal(weighted.score("", images), expected)
    check_scorer(WeightedSum([BrightnessScorer(), Channel("blue", 2)], [1.0, 0.5]))
    run(tmp_path / "run", scorer=weighted)
    config = json.loads((tmp_path / "run" / "run.json").read_text())
    assert config["scorers"] == ["0.002*red@1+-1*green@2"]


def test_specs():
    both = load_scorer("clip-mini+brightness")
    assert isinstance(both, MeanRank)
    assert both.name.endswith("+brightness") and both.name.startswith("clip-mini@")
    assert callable(both.embed)  # of clip-mini: near-copies can be told
    weighted = load_ensemble("2*a + b", lambda name: Channel(name, 0))
    assert isinstance(weighted, WeightedSum)
    assert weighted.name == "2*a+1*b"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("brightness+", "expected names joined by +"),
        ("brightness+brightness", "each once"),
        ("x*brightness+clip-mini", "the weight is 'x'; expected a number other than zero"),
        ("0*brightness+clip-mini", "the weight is '0'"),
        ("nan*brightness+clip-mini", "the weight is 'nan'"),
        ("brightness+nothing", "got 'nothing'"),
    ],
)
def test_specs_that_are_none(spec, message):
    import re

    with pytest.raises(UsageError, match=re.escape(message)):
        load_scorer(spec)


def test_short_names_lose_every_hash():
    assert ranking.short_names(["a@1f+b@2e", "a@1f"]) == {"a@1f+b@2e": "a+b", "a@1f": "a"}
    assert set(ranking.short_names(["a@1f+b@2e", "a@1f+b@3e"]).values()) == {"a@1f+b@2e", "a@1f+b@3e"}
