"""One person's session: nothing lost, nothing doubled, undone to any depth, blind, with its figures."""

from __future__ import annotations

import pytest
from support.painted_runs import png

from sp_rerank.errors import StorageError, UsageError
from sp_rerank.label.session import LABELS, WAITING


def say(session, said="left", milliseconds=800):
    question = session.state()["questions"][0]
    assert session.answer(question["id"], said, milliseconds)
    return question


@pytest.mark.parametrize("said", list(LABELS))
def test_an_answer_is_what_was_said_of_the_sides(session, store, said):
    question = session.state()["questions"][0]
    left = {session.pictures.name(item): item.sha256 for item in session.contests[0].items}[question["left"]]
    session.answer(question["id"], said, 812)
    (answer,) = store.answers()
    assert (answer.id, answer.answered_ms, answer.annotator) == (question["id"], 812, "me")
    assert answer.both_bad == (said == "bad")
    if said in ("left", "right"):
        winner = answer.first if answer.label == 1 else answer.second
        assert (winner == left) == (said == "left")
    else:
        assert answer.label == (None if said == "skip" else 0.5)


def test_left_is_left_whichever_side_the_first_is_on(session, store):
    for _ in range(30):
        say(session, "left")
    answers = store.answers()
    assert {(a.first_side, a.label) for a in answers} == {("left", 1.0), ("right", 0.0)}


def test_the_next_questions_wait(session):
    before = session.state()["questions"]
    assert len(before) == WAITING
    say(session)
    assert session.state()["questions"][: WAITING - 1] == before[1:]


def test_the_same_answer_again_is_not_kept_again(session, store):
    question = say(session)
    assert not session.answer(question["id"], "right", 1)
    assert [answer.answered_ms for answer in store.answers()] == [800]


def test_undo_goes_back_to_the_first_question_also_after_a_new_start(session, begin, store):
    asked = [say(session, said) for said in ("left", "equal", "skip", "bad")]
    session.undo()
    again = begin()
    for expected in asked[2::-1]:
        again.undo()
        shown = again.state()["questions"][0]
        assert len(again.state()["questions"]) == WAITING
        ends = [expected["left"], expected["right"]]
        names = {session.pictures.name(item): again.pictures.name(item) for item in session.contests[0].items}
        assert [shown["left"], shown["right"]] == [names[end] for end in ends], "the same sides"
    assert not again.undo()
    assert store.answers() == []
    say(again)
    assert again.state()["answered"] == 1


def test_another_process_on_the_store_is_taken_up(session, begin, tmp_path):
    say(session)
    other = begin()
    say(other)
    say(other)
    assert other.state()["answered"] == 3
    from sp_rerank.choosing.store import AnswerStore

    with AnswerStore(tmp_path / "labels.sqlite") as store:
        store.undo(store.answers()[-1].id)
    assert other.state()["answered"] == 2


def test_people_do_not_see_each_others_answers(session, begin):
    say(session)
    assert begin("you").state()["answered"] == 0


def test_what_cannot_be_said_is_refused(session, store):
    question = session.state()["questions"][0]
    with pytest.raises(UsageError, match="out of left, right, equal, bad, skip"):
        session.answer(question["id"], "DROP TABLE answer", 1)
    assert not session.answer("no such id", "left", 1)
    assert store.answers() == []


def test_an_answer_that_cannot_be_kept_waits_on(session, store, monkeypatch):
    question = session.state()["questions"][0]
    monkeypatch.setattr(type(store), "add", lambda *_: (_ for _ in ()).throw(StorageError("full")))
    with pytest.raises(StorageError):
        session.answer(question["id"], "left", 1)
    monkeypatch.undo()
    assert session.state()["questions"][0] == question
    assert session.answer(question["id"], "left", 1)


def test_figures(begin, place):
    session = begin(confidence=0.5)
    assert session.state()["sure"] is None
    best = place.rows[11].sha256
    for _ in range(40):
        question = session.state()["questions"][0]
        names = {session.pictures.name(item): item.sha256 for item in session.contests[0].items}
        said = "left" if names[question["left"]] == best else "right" if names[question["right"]] == best else "equal"
        session.answer(question["id"], said, 30_000)
    state = session.state()
    assert (state["answered"], state["minutes"]) == (40, 20)
    assert state["enough"] and 0.5 < state["sure"] < 1
    assert state["scorer"].startswith(f"{session.consistency().scorer.count} of ")
    assert session.best()[0].sha256 == best
    assert begin(blind_stats=True).state()["scorer"] is None
    assert not begin(confidence=1.0).state()["enough"]


def test_images_that_go_away_are_no_longer_asked_for(session, place):
    state = session.state()
    for i in range(3, 12):
        place.image(i).unlink()
    place.image(2).write_bytes(png(99))
    session.pictures._made.clear()
    for _ in range(WAITING):  # those that were loaded already
        say(session)
    state = session.state()
    assert state["lost"] >= 1
    shown = {session.pictures.name(item) for item in session.contests[0].items}
    for question in state["questions"]:
        assert {question["left"], question["right"]} <= shown
        assert session.png(question["left"])


def test_no_image_at_all_is_an_error(session, place):
    for i in range(12):
        place.image(i).unlink()
    with pytest.raises(StorageError, match="gone, or were changed"):
        session.state()


def test_two_images_are_one_question_at_a_time(tmp_path, store):
    import numpy as np
    from support.painted_runs import make_run

    from sp_rerank.choosing.contest import gather
    from sp_rerank.choosing.questions import Questions
    from sp_rerank.label.session import Session

    run = make_run(tmp_path / "two", {"a@1": [0.1, 0.2]})
    session = Session("me", store, Questions(gather([run.path]).contests, "best", np.random.default_rng(0)))
    assert len(session.state()["questions"]) == 1
    say(session)
    assert len(session.state()["questions"]) == 1
