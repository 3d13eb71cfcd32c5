"""A taste: it learns what it is told, says how well, refuses what is no taste, and is a scorer like any other."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit
from support.answers import answer_of

from sp_rerank import check_scorer, cli, load_scorer
from sp_rerank.choosing.store import AnswerStore
from sp_rerank.errors import UsageError
from sp_rerank.scorers.calibration import calibration_of
from sp_rerank.scorers.taste import TasteScorer, look
from sp_rerank.stats.bradley_terry import posterior
from sp_rerank.storage.atomic import sha256_of
from sp_rerank.train import head as heads
from sp_rerank.train import taste
from sp_rerank.train.head import Answers, fit, predict, predict_onward
from sp_rerank.train.readers import read_preferences
from sp_rerank.train.taste import report


def answers_of(k, *, seed=0, prompts=10, base=0.0, noise=False, d=12):
    """Answers of somebody whose taste is one direction of the features, and of a base that correlates with it."""
    rng = np.random.default_rng(seed)
    gaps = rng.normal(size=(k, d))
    liking = 3 * gaps[:, 0]
    score = base * gaps[:, 0] + rng.normal(size=k)
    p = expit(liking)
    labels = (rng.random(k) < p).astype(float) if noise else (p > 0.5).astype(float)
    return Answers(score, gaps, labels, rng.integers(prompts, size=k), np.ones(k, bool))


def right(logits, answers):
    return np.mean((logits > 0) == (answers.labels == 1))


def test_it_learns_a_direction_that_the_base_does_not_know():
    head, new = fit(answers_of(120)), answers_of(500, seed=1)
    assert right(new.score, new) < 0.56
    assert right(predict(head, new), new) > 0.85


def test_without_a_taste_of_its_own_it_is_the_base():
    rng = np.random.default_rng(0)
    score, gaps = rng.normal(size=80), rng.normal(size=(80, 12))
    same = Answers(score, gaps, (score > 0).astype(float), rng.integers(8, size=80), np.ones(80, bool))
    head = fit(same)
    new = answers_of(300, seed=2)
    assert right(predict(head, new), Answers(new.score, new.gaps, (new.score > 0) * 1.0, new.prompts, new.fresh)) > 0.9


def test_the_scale_of_score_and_features_does_not_matter():
    one = answers_of(60, base=0.5)
    two = Answers(100 * one.score, 1e-3 * one.gaps, one.labels, one.prompts, one.fresh)
    assert predict(fit(one), one) == pytest.approx(predict(fit(two), two), rel=1e-4)


def test_left_out_is_what_a_fit_without_the_prompt_predicts():
    answers = answers_of(60, prompts=6, noise=True)
    head = fit(answers)
    scaled = np.column_stack([answers.score / heads._scale(answers.score), answers.gaps / heads._scale(
        np.linalg.norm(answers.gaps, axis=1))])  # fmt: skip
    spread = np.array([heads.SCORE_VARIANCE, *[head.variance] * answers.gaps.shape[1]])
    for prompt in range(6):
        own = answers.prompts == prompt
        without = posterior(scaled[~own], answers.labels[~own], variance=spread)
        assert head.left_out[own] == pytest.approx(scaled[own] @ without.mean, abs=0.35)
    together = np.corrcoef(head.left_out, predict(head, answers))[0, 1]
    assert together > 0.8 and not np.allclose(head.left_out, predict(head, answers), atol=0.05)


def test_every_answer_is_predicted_by_those_before_it():
    answers = answers_of(90, noise=True)
    whole = predict_onward(answers)
    assert np.isnan(whole[: heads.FEWEST]).all() and np.isfinite(whole[heads.FEWEST :]).all()
    later = answers.labels.copy()
    later[60:] = 1 - later[60:]
    changed = predict_onward(Answers(answers.score, answers.gaps, later, answers.prompts, answers.fresh))
    same = whole[heads.FEWEST : 60] == changed[heads.FEWEST : 60]
    assert same.all(), "what came later changes nothing"
    assert not np.allclose(whole[70:], changed[70:])


def test_the_report_counts_the_last_answers_and_no_ties_or_repeats():
    answers = answers_of(120)
    answers.labels[100:105] = 0.5
    answers.fresh[105:110] = False
    found, fitted = report(answers, fit(answers), "clip-mini@1")
    assert (found.answers, found.prompts) == (120, 10)
    assert found.taste_last.of == found.base_last.of == 60
    assert found.base_all.of == found.taste_prompts.of == 110
    assert found.taste_last.value > 0.8 > found.base_last.value
    assert 0 <= fitted.temperature < 2


def test_one_prompt_says_nothing_of_others():
    answers = answers_of(60, prompts=1)
    assert report(answers, fit(answers), "x")[0].taste_prompts is None


def test_answers_at_random_are_no_taste():
    refused = 0
    for seed in range(20):
        answers = answers_of(100, seed=seed)
        answers.labels[:] = np.random.default_rng(seed).integers(2, size=100)
        try:
            taste.check_told_from_chance(answers, fit(answers))
        except UsageError as error:
            assert "no scorer is written" in str(error)
            refused += 1
    assert refused >= 17
    answers = answers_of(100)
    taste.check_told_from_chance(answers, fit(answers))


# The scorer, out of a real store


@pytest.fixture(scope="module")
def base():
    return load_scorer("clip-mini")


def paint(folder, count=24):
    """Images from blue to red, with noise."""
    rng = np.random.default_rng(0)
    files = []
    for i in range(count):
        share = i / (count - 1)
        pixels = np.full((64, 64, 3), [255 * share, 90, 255 * (1 - share)]) + rng.normal(0, 25, (64, 64, 3))
        files.append(folder / f"{i:02d}.png")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(files[-1])
    return files


@pytest.fixture(scope="module")
def likes_red(tmp_path_factory):
    """A store of somebody who likes red, about two prompts."""
    folder = tmp_path_factory.mktemp("answers")
    files = paint(folder)
    digests = [sha256_of(file) for file in files]
    rng = np.random.default_rng(1)
    with AnswerStore(folder / "labels.sqlite") as store:
        for prompt in ("a lemon", "two cats"):
            store.remember(prompt, dict(zip(digests, files, strict=True)))
        for number in range(60):
            i, j = rng.choice(len(files), 2, replace=False)
            prompt = ("a lemon", "two cats")[number % 2]
            store.add(answer_of(digests[i], digests[j], float(i > j), id=str(number), prompt=prompt, shown_at=number))
    return folder / "labels.sqlite"


@pytest.fixture
def made(likes_red, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["x", "taste", str(likes_red), "--base", "clip-mini", "--out", str(tmp_path / "me")]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert not end.value.code, err
    return tmp_path / "me", out, err


def test_from_answers_to_a_scorer(made, likes_red, base):
    folder, out, err = made
    assert out == f"sp@{folder}\n"
    assert "clip-mini agreed with you in" in err and "of the last 50 answers" in err
    scorer = load_scorer(f"sp@{folder}")
    check_scorer(scorer)
    images = [Image.open(likes_red.parent / f"{i:02d}.png") for i in (0, 12, 23)]
    scores = scorer.score("a lemon", images)
    assert scores[0] < scores[1] < scores[2]
    assert scorer.name.startswith("taste-me@")
    calibration = calibration_of(scorer)
    assert calibration is not None and calibration.pairs == 60 and not calibration.simulated
    assert scorer.embed(images).shape == (3, base.config["embed_dim"])
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20_000, "without the base"


def test_it_stands_in_every_command(made, likes_red, monkeypatch, capsys):
    folder, *_ = made
    monkeypatch.setattr(
        "sys.argv", ["x", "rank", str(likes_red.parent), "--prompt", "a lemon", "--scorer", f"sp@{folder}"]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert not end.value.code, err
    assert out.splitlines()[0].endswith("23.png")


def test_a_taste_of_another_base_is_refused(made, base):
    folder, *_ = made
    config = json.loads((folder / "config.json").read_text())
    assert config["base_name"] == base.name
    (folder / "config.json").write_text(json.dumps({**config, "base_name": "clip-mini@000000000000"}))
    with pytest.raises(UsageError, match="expected its base clip-mini@000000000000, which it was fitted on, got"):
        load_scorer(f"sp@{folder}")


def test_a_base_in_a_folder_is_found_from_the_taste_on(likes_red, base, tmp_path, monkeypatch):
    base.save_pretrained(tmp_path / "base")
    spec = f"sp@{tmp_path / 'base'}"
    own = load_scorer(spec)
    groups = list(read_preferences(likes_red))
    answers, _ = taste.read_answers(groups, own)
    head = fit(answers)
    (tmp_path / "tastes").mkdir()
    made = taste.as_scorer(head, own, base_spec=spec, out=tmp_path / "tastes" / "me", source="test")
    taste.write(made, report(answers, head, own.name)[1], tmp_path / "tastes" / "me", data="test")
    assert json.loads((tmp_path / "tastes" / "me" / "config.json").read_text())["base"] == "sp@../../base"
    monkeypatch.chdir(tmp_path / "tastes")
    assert load_scorer("sp@me").name == made.name


def test_what_a_base_sees_adds_up_to_its_score(base):
    images = torch.rand(3, 3, 64, 64)
    seen = look(base, ["a lemon", "two cats", "a lemon"], images)
    assert seen.score.tolist() == pytest.approx(
        base.score(["a lemon", "two cats", "a lemon"], images).tolist(), abs=1e-5
    )
    assert seen.image.shape == seen.match.shape == (3, base.config["embed_dim"])


def test_a_base_without_embeddings_is_refused(likes_red):
    with pytest.raises(UsageError, match="has no embeddings of images"):
        taste.read_answers(list(read_preferences(likes_red)), load_scorer("brightness"))


def test_too_few_answers_and_other_people_are_refused(likes_red, base):
    groups = list(read_preferences(likes_red))
    with pytest.raises(UsageError, match=r"expected 10 answers or more by eve .*got 0"):
        taste.read_answers(groups, base, annotator="eve")


def test_another_folder_is_not_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="something else than a taste"):
        taste.check_place(tmp_path)
    taste.check_place(tmp_path / "new")


def test_it_loads_nothing_before_it_is_used():
    blank = TasteScorer("x", "clip-mini", "clip-mini@1", 4, 4, "none", "test")
    assert blank.base is None and set(blank.state_dict()) == {"score_weight", "image_weight", "match_weight"}
