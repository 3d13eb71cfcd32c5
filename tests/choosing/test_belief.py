"""What answers and a scorer say together: order, certainty, what is settled."""

from __future__ import annotations

import numpy as np
import pytest

from sp_rerank.choosing.belief import FIRST, Belief, Comparison, Tally


def test_without_answers_the_order_is_the_scorers():
    scores = [0.2, 0.9, 0.5, 0.9]
    assert Belief(4, scores=scores).order() == [1, 3, 2, 0]
    assert Belief(4).order() == [0, 1, 2, 3]
    assert Belief(3, scores=[0.5, 0.5, 0.5]).mean.tolist() == [0, 0, 0]


def test_the_scale_of_the_scorer_does_not_matter():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=20)
    answers = [Comparison(3, 5, 1.0), Comparison(5, 7, 0.5)]
    one, two = (Belief(20, answers, scores=values) for values in (scores, 1000 * scores - 7))
    assert one.mean == pytest.approx(two.mean)


def test_answers_overrule_the_scorer():
    scores = [1.0, 0.5, 0.0, -1.0]
    wins = [Comparison(3, i, 1.0) for i in (0, 1, 2) for _ in range(6)]
    assert Belief(4, wins, scores=scores).order()[0] == 3


def test_a_comparison_with_a_middling_image_moves_one_image_alone():
    before, after = Belief(3), Belief(3, [Comparison(1, None, 0.0)])
    assert after.mean[1] < before.mean[1] == 0
    assert after.mean[[0, 2]].tolist() == [0, 0]


def test_draws_have_the_mean_and_follow_the_answers():
    belief = Belief(4, [Comparison(0, 1, 1.0)] * 5, scores=[0.0, 0.1, 0.2, 0.3])
    drawn = belief.draw(np.random.default_rng(0), 20000)
    assert drawn.shape == (20000, 4)
    assert drawn.mean(axis=0) == pytest.approx(belief.mean, abs=0.06)
    assert np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1] > 0.1, "what was compared hangs together"


def test_the_probability_of_the_best_is_a_probability():
    """Of people drawn from the model itself, as many of its first are the best as it claims."""
    rng = np.random.default_rng(2)
    claimed, held = [], []
    for _ in range(60):
        z = rng.normal(size=12)
        utility = 2.0 * (0.6 * z + 0.8 * rng.normal(size=12))
        answers = []
        for _ in range(20):
            i, j = rng.choice(12, 2, replace=False)
            answers.append(Comparison(int(i), int(j), float(rng.random() < 1 / (1 + np.exp(utility[j] - utility[i])))))
        belief = Belief(12, answers, scores=z)
        claimed.append(belief.best_probability(rng))
        held.append(belief.order()[0] == utility.argmax())
    # The standard error of what held is .06.
    print(f"claimed {np.mean(claimed):.3f}, held {np.mean(held):.3f}")
    assert abs(np.mean(claimed) - np.mean(held)) < 0.15


def test_settled_when_no_answer_would_change_the_first_places():
    n = FIRST + 3
    few = [Comparison(i, j, 1.0) for i in range(n) for j in range(i + 1, n)]
    assert not Belief(n, few).settled()
    assert Belief(n, few * 12).settled()
    assert Belief(FIRST).settled(), "there are no others"


def test_settled_agrees_with_asking_each_question():
    n = FIRST + 2
    answers = [Comparison(i, j, 1.0) for i in range(n) for j in range(i + 1, n)]
    for given in (answers[:1], answers[:4], answers, answers * 4):
        belief = Belief(n, given)
        first = set(belief.order()[:FIRST])
        changes = any(
            set(Belief(n, [*given, Comparison(i, j, label)]).order()[:FIRST]) != first
            for i in range(n) for j in range(i + 1, n) for label in (0.0, 1.0)
        )  # fmt: skip
        assert not (belief.settled() and changes)
        assert belief.settled() == (len(given) > len(answers)), "it errs to the side of asking on"
        assert changes == (len(given) < len(answers))


def test_a_tally_says_the_same_as_its_comparisons():
    comparisons = [Comparison(0, 1, 1.0), Comparison(1, 0, 1.0), Comparison(1, 0, 0.5), Comparison(2, None, 0.0, 0.3)]
    tally = Tally()
    tally.add(comparisons[:2])
    tally.add(comparisons[2:])
    assert tally.comparisons == [Comparison(0, 1, 0.5, 3.0), Comparison(2, None, 0.0, 0.3)]
    one, two = Belief(3, comparisons), Belief(3, tally.comparisons)
    assert one.mean == pytest.approx(two.mean)


def test_a_hundred_thousand_answers_are_as_quick_as_their_pairs():
    tally = Tally()
    tally.add([Comparison(i % 20, (i * 7 + 1) % 20, 1.0) for i in range(100_000) if i % 20 != (i * 7 + 1) % 20])
    assert len(tally.comparisons) <= 190
    assert np.isfinite(Belief(20, tally.comparisons).mean).all()
