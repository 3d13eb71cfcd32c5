"""Simulated annotators: they agree as often as is asked for, prefer what the truth prefers, and write what we read."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sp_rerank import load_pipeline
from sp_rerank.diffusion import spacing
from sp_rerank.diffusion.loading import MODELS
from sp_rerank.search.schedule import read_schedule, shipped
from sp_rerank.train.mini import annotators, images
from sp_rerank.train.mini.grammar import parse
from sp_rerank.train.mini.scenes import draw_scene
from sp_rerank.train.mini.truth import FULL
from sp_rerank.train.readers import read_preferences


@pytest.mark.parametrize("agreement", [0.6, 0.65, 0.8])
def test_two_annotators_agree_as_often_as_asked_for(agreement):
    rng = np.random.default_rng(0)
    utility = rng.normal(size=(400, 8)) * rng.exponential(3, size=(400, 1))
    ranked = annotators.opinions(utility, annotators.noise_for(utility, agreement), 2, rng)
    first, second = np.triu_indices(8, 1)
    first_person, other = (ranked[:, k, first] < ranked[:, k, second] for k in (0, 1))
    measured = (first_person == other).mean()
    print(f"two annotators agree on {measured:.1%} of {other.size} pairs, {agreement:.0%} was asked for")
    assert measured == pytest.approx(agreement, abs=0.02)


def test_many_annotators_find_the_order_of_the_truth():
    utility = np.array([[0.0, 3.0, 1.0, 2.0]])
    ranked = annotators.opinions(utility, 1.0, 500, np.random.default_rng(1))
    assert annotators.ranks(-ranked.mean(axis=1)).tolist() == annotators.ranks(utility).tolist() == [[4, 1, 3, 2]]
    assert all(sorted(row) == [1, 2, 3, 4] for row in ranked[0].tolist())


def test_captions_are_new_and_survive_a_mirror():
    captions = images.captions_of_domains(100)
    every = [caption for some in captions.values() for caption in some]
    assert len(set(every)) == len(every)
    assert {parse(caption).relation for caption in every} <= {None, "and", "above"}
    assert all(parse(caption).held_out for caption in captions["other"])
    assert not any(parse(caption).held_out for name in ("train", "test", "picks") for caption in captions[name])


def test_more_prompts_to_learn_from_change_no_other():
    few, many = images.captions_of_domains(20), images.captions_of_domains(60)
    assert many["drafts"][:20] == few["drafts"]
    assert {name: many[name] for name in many if name != "drafts"} == {
        name: few[name] for name in few if name != "drafts"
    }


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers' solver
def test_drafts_are_made_as_a_search_makes_them(tmp_path):
    domain = images.Domain(6, 1, images=2, steps=6, scheduler="draft")
    (block,) = images.blocks_of(tmp_path, "drafts", ["a lemon"])
    images.make(replace(block, domain=domain))
    assert len(list((tmp_path / "drafts").glob("0000-0[01].png"))) == 2
    pipe, how = images._pipeline(domain)
    assert type(pipe.scheduler).__name__ == spacing.SOLVER
    first = spacing.first_time(load_pipeline("mini").scheduler, {}, MODELS["mini"].steps)
    fast = read_schedule(shipped())
    assert fast.rounds[0].at == domain.steps
    assert how["timesteps"] == [round(t) for t in spacing.spaced(first, domain.steps, fast.spacing)]


def test_careless_people_agree_less():
    utility = np.random.default_rng(0).normal(size=(500, 8))
    ranked = annotators.opinions(utility, 0.0, 2, np.random.default_rng(1))
    mixed = annotators.careless(ranked, np.random.default_rng(2))
    same = (mixed == ranked).all(axis=2).mean()
    assert same == pytest.approx(1 - annotators.CARELESS, abs=0.04)
    assert all(sorted(row) == list(range(1, 9)) for row in mixed[:, 0].tolist())


@pytest.fixture
def folder(tmp_path):
    """A domain each of two prompts with three scenes, as `sp_rerank.train.mini.images` writes them."""
    rng = random.Random(0)
    for name in ("train", "validation", "test", "other"):
        captions = ["a lemon", "a cat on the beach"]
        (tmp_path / name).mkdir()
        (tmp_path / name / "captions.json").write_text(json.dumps(captions))
        for number, caption in enumerate(captions):
            for j, shown in enumerate((caption, caption, "a pig in the snow")):
                scene = draw_scene(parse(shown), rng)
                Image.fromarray(scene.image).save(tmp_path / name / f"{number:04}-{j:02}.png")
    return tmp_path


def test_the_truth_of_a_domain_is_computed_once(folder, monkeypatch):
    first = annotators.truth_of(folder / "train", jobs=1)
    assert (first.utility()[:, 2] < first.utility()[:, :2].min(axis=1)).all()
    monkeypatch.setattr(annotators, "_terms_of_prompt", lambda _: pytest.fail("computed a second time"))
    assert np.array_equal(annotators.truth_of(folder / "train", jobs=1).utility(), first.utility())


def test_the_files_are_read_as_the_layouts_they_imitate(folder):
    annotators.write_labels(folder, folder / "full", FULL, rankings=4)
    for name in ("bradley-terry", "careless", "validation", "test", "other"):
        groups = list(read_preferences(folder / "full" / f"{name}.json", images=folder))
        learned = name in ("bradley-terry", "careless")
        each = 4 if learned else 1
        assert [group.prompt for group in groups] == ["a lemon"] * each + ["a cat on the beach"] * each
        assert {len(group.pairs) for group in groups} == {3}
        assert {len(group.annotations) for group in groups} == {0 if learned else annotators.PEOPLE}
        assert groups[0].images[0].open().size == (64, 64)
        if name == "test":
            utility = annotators.truth_of(folder / name, jobs=1).utility()
            assert [list(group.ranks or ()) for group in groups] == annotators.ranks(utility).tolist()
