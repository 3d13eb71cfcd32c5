"""What is told of a person's answers, and what is not told because too few are known."""

from __future__ import annotations

import pytest
from support.answers import answer_of

from sp_rerank.choosing.consistency import ENOUGH, Share, consistency, sentences


def scored(prompt, sha256):
    return {"1": 0.1, "2": 0.2, "3": 0.2}.get(sha256)


def test_the_interval_is_the_exact_one_of_the_binomial_distribution():
    assert str(Share(31, 42)) == "31 of 42 [.58, .86]"
    assert str(Share(0, 0)) == "0 of 0 [.00, 1.00]"
    assert Share(3, 4).value == 0.75


def test_what_is_counted():
    answers = [
        answer_of(1, 2, 1.0, id="a"),
        answer_of(1, 2, 0.0, id="b", repeat_of="a", first_side="right"),
        answer_of(2, 1, 1.0, id="c", answered_ms=299),
        answer_of(2, 3, 1.0, id="d"),
        answer_of(2, 9, 1.0, id="e"),
        answer_of(1, 3, 0.5, id="f", both_bad=True),
        answer_of(1, 3, None, id="g"),
    ]
    found = consistency(answers, scored)
    assert (found.answered, found.skipped, found.ties, found.fast) == (6, 1, 1, 1)
    assert found.repeats == Share(0, 1)
    assert found.left == Share(5, 5), "the second of 'b' was on the left"
    assert found.scorer == Share(2, 3), "equal scores and images without one are not compared"


@pytest.mark.parametrize(("count", "said"), [(ENOUGH - 1, False), (ENOUGH, True)])
def test_consistency_is_not_told_of_few_repeats(count, said):
    answers = [answer_of(1, 9, 1.0, id=f"{i}") for i in range(count)]
    answers += [answer_of(1, 9, 1.0, id=f"again {i}", repeat_of=f"{i}", first_side="right") for i in range(count)]
    lines = sentences(consistency(answers, scored))
    assert any("repeated question" in line for line in lines) == said


def test_a_person_who_always_says_left_is_told():
    lines = sentences(consistency([answer_of(1, 9, 1.0, id=str(i)) for i in range(30)], scored))
    assert any("the left image was chosen more often" in line for line in lines)
    answers = [answer_of(1, 9, float(i % 2), id=str(i)) for i in range(30)]
    assert sentences(consistency(answers, scored)) == []
