"""What a run knows of its candidates is kept up to date as they come, and is what a look at all of them gives."""

import random
from dataclasses import replace

from support.runs import run_config

from sp_rerank.config import Stage
from sp_rerank.run.records import Row, StageScore
from sp_rerank.run.state import RunState

SHA = "0" * 64
DRAFT = Stage("draft", 4)


def row(index, score, status="ok"):
    return Row(index, index, status, {"test": score}, SHA, 5, 2)


def drawn(count, seed):
    """Rows of which some tie, some are not usable and some were dropped."""
    chance = random.Random(seed)
    statuses = ["ok", "ok", "ok", "flagged", "dropped", "nonfinite"]
    return [row(index, chance.choice([None, 0.25, chance.random()]), chance.choice(statuses)) for index in range(count)]


def anew(state):
    return RunState(state.config, dict(state.rows))


def test_the_best_and_the_counts_are_those_of_all_rows():
    rows = drawn(200, seed=1)
    state = RunState(run_config(200), {})
    state.best(7)
    for start in range(0, 200, 10):
        state.put_rows({made.index: made for made in rows[start : start + 10]})
        assert state.best(3) == anew(state).best(3)
        assert state.best(7) == anew(state).best(7)
        assert state.reached(None) == len(state.finished)
    assert state.best(60) == anew(state).best(60)
    state.put_rows({made.index: replace(made, sha256="1" * 64) for made in rows})
    assert state.best(7) == anew(state).best(7)
    best = state.best(1)[0]
    state.put_rows({best: row(best, -1.0)})
    assert state.best(7) == anew(state).best(7)
    state.forget_rows(state.best(2))
    assert state.best(7) == anew(state).best(7)
    assert state.reached(None) == len(state.finished)


def test_not_all_rows_are_asked_for_their_score_with_each_batch(monkeypatch):
    asked = []
    score = RunState.score
    monkeypatch.setattr(RunState, "score", lambda state, index: asked.append(index) or score(state, index))
    state = RunState(run_config(1000), {})
    for index in range(1000):
        state.put_rows({index: row(index, index / 1000)})
        state.best(4)
    assert len(asked) == 1000


def test_stages_are_counted():
    state = RunState(run_config(9), {})
    seen = StageScore(DRAFT, 0.5, 4)
    state.note_stages([(index, seen) for index in range(6)])
    assert state.reached(DRAFT) == len(state.seen_at(DRAFT)) == 6
    state.put_rows({0: row(0, 0.5), 1: row(1, None, "dropped")})
    assert (state.reached(DRAFT), state.reached(None)) == (6, 1)
    state.replace_stages({4: (seen,)})
    assert (state.reached(DRAFT), state.reached(None)) == (1, 1)
    assert state.reached(Stage("draft", 8)) == 0
