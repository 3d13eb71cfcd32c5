"""Which questions are asked: they find the best, they teach, they come again, they are never the same twice at once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.special import expit
from support.answers import PROMPT, answer_of, answered, contest_of

from sp_rerank.choosing.questions import FEW, REPEAT_AFTER, Questions
from sp_rerank.choosing.store import Mark


def questions_of(n=20, scores=None, goal="best", seed=0, **more):
    return Questions([contest_of(n, scores)], goal, np.random.default_rng(seed), **more)


def ask(questions, utility, rng, count):
    for _ in range(count):
        question = questions.next()
        better = rng.random() < expit(utility[question.first] - utility[question.second])
        questions.hear(answered(question, float(better)))


def test_a_few_answers_find_more_than_the_scorer_does():
    shares = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        utility = 2 * rng.normal(size=30)
        scores = 0.6 * utility / 2 + 0.8 * rng.normal(size=30)
        questions = questions_of(30, scores, seed=seed)
        first = [questions.belief(0).order()[0]]
        ask(questions, utility, rng, 20)
        first.append(questions.belief(0).order()[0])
        shares.append([(utility[i] - utility.mean()) / (utility.max() - utility.mean()) for i in first])
    before, after = np.mean(shares, axis=0)
    print(f"share of the way to the best: {before:.2f} before, {after:.2f} after 20 answers")
    assert after > before + 0.15
    assert after > 0.8


def test_questions_that_wait_are_not_asked_again():
    questions = questions_of(4)
    waiting = []
    for _ in range(5):
        waiting.append(questions.next(waiting))
    assert len({question.pair for question in waiting}) == 5
    assert len({question.id for question in waiting}) == 5


def test_both_sides_are_equally_likely():
    questions = questions_of(30)
    sides = Counter(questions.next().first_side for _ in range(200))
    assert 70 < sides["left"] < 130


def test_one_in_eight_is_a_repeat_of_long_ago_with_its_sides_swapped():
    questions = questions_of(30, goal="learn")
    rng = np.random.default_rng(1)
    ask(questions, np.zeros(30), rng, 400)
    answers = questions.answers
    repeats = [(i, a) for i, a in enumerate(answers) if a.repeat_of]
    assert 25 < len(repeats) < 75
    places = {answer.id: i for i, answer in enumerate(answers)}
    for i, repeat in repeats:
        before = answers[places[repeat.repeat_of]]
        assert i - places[repeat.repeat_of] >= REPEAT_AFTER
        assert (repeat.first, repeat.second) == (before.first, before.second)
        assert repeat.first_side != before.first_side
        assert repeat.chooser == "repeat" and before.repeat_of is None
    assert len({repeat.repeat_of for _, repeat in repeats}) == len(repeats), "none is repeated twice"


def test_prompts_take_turns():
    contests = [contest_of(6, prompt="a"), contest_of(6, prompt="b"), contest_of(6, prompt="c")]
    questions = Questions(contests, "best", np.random.default_rng(0))
    waiting = [questions.next()]
    waiting.append(questions.next(waiting))
    waiting.append(questions.next(waiting))
    assert [question.contest for question in waiting] == [0, 1, 2]


def test_learning_begins_at_random_and_goes_on_half_and_half():
    rng = np.random.default_rng(3)
    features = rng.normal(size=(40, 8))
    questions = questions_of(40, goal="learn", features=[features])
    ask(questions, features @ rng.normal(size=8), rng, FEW + 60)
    choosers = [answer.chooser for answer in questions.answers if answer.chooser != "repeat"]
    repeats = sum(answer.chooser == "repeat" for answer in questions.answers[:FEW])
    assert set(choosers[: FEW - repeats]) == {"random"}
    later = Counter(choosers[FEW - repeats :])
    assert abs(later["random"] - later["active"]) <= 8 and later["active"] > 15


def test_learning_shows_small_and_large_gaps_of_the_scorer():
    scores = np.linspace(0, 1, 50)
    questions = questions_of(50, scores, goal="learn")
    ask(questions, np.zeros(50), np.random.default_rng(0), 45)
    gaps = [abs(scores[int(a.first)] - scores[int(a.second)]) for a in questions.answers]
    assert sum(gap < 0.2 for gap in gaps) >= 10
    assert sum(gap > 0.5 for gap in gaps) >= 10


def test_the_most_telling_question_is_one_that_the_head_does_not_know():
    """After many answers about the first feature, questions about the second one are asked."""
    rng = np.random.default_rng(0)
    features = np.array([[x, y] for x in np.linspace(-2, 2, 8) for y in (-1.0, 1.0)])
    questions = questions_of(16, goal="learn", features=[features])
    for i in range(FEW + 40):
        first, second = rng.choice(8, 2, replace=False) * 2  # of one y
        questions.hear(answer_of(first, second, float(first > second), id=str(i)))
    asked = [questions.next() for _ in range(40)]
    active = [q for q in asked if q.chooser == "active"]
    assert len(active) > 20
    assert all(features[q.first][1] != features[q.second][1] for q in active)


def test_both_bad_ties_and_lowers_both():
    questions = questions_of(4)
    questions.hear(answer_of(0, 1, 0.5, both_bad=True))
    mean = questions.belief(0).mean
    assert mean[0] == pytest.approx(mean[1]) and mean[0] < mean[2] == 0


def test_a_skipped_question_says_nothing():
    questions = questions_of(4)
    questions.hear(answer_of(0, 1, None))
    assert questions.belief(0).mean.tolist() == [0] * 4
    assert len(questions.answers) == 1


def test_marks_lift_and_lower():
    questions = questions_of(6)
    marks = [Mark(PROMPT, "2", "favorite", "me"), Mark(PROMPT, "4", "reject", "me"), Mark("other", "1", "reject", "me")]
    questions.begin([], marks)
    assert questions.belief(0).order()[0] == 2
    assert questions.belief(0).order()[-1] == 4


def test_answers_about_other_images_are_not_looked_at():
    questions = questions_of(4)
    questions.begin([answer_of(0, "gone"), answer_of(0, 1, prompt="another"), answer_of(2, 3)])
    assert [answer.first for answer in questions.answers] == ["2"]


def test_an_undone_answer_is_asked_again_as_it_was():
    questions = questions_of(5)
    question = questions.next()
    answer = answered(question, 1.0)
    again = questions.ask_again(answer)
    assert again.id != question.id
    assert (again.pair, again.first, again.first_side) == (question.pair, question.first, question.first_side)


def test_two_images_go_on():
    questions = questions_of(2, [0.1, 0.2])
    rng = np.random.default_rng(0)
    ask(questions, np.array([2.0, 0.0]), rng, 30)
    assert questions.belief(0).order()[0] == 0
