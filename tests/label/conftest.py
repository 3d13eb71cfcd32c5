"""A session on a painted run, and a client that came in by the link."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from support.painted_runs import make_run

pytest.importorskip("starlette", reason="the extra label is not installed")

from starlette.testclient import TestClient

from sp_rerank.choosing.contest import gather
from sp_rerank.choosing.questions import Questions
from sp_rerank.choosing.store import AnswerStore
from sp_rerank.label.app import build_app
from sp_rerank.label.gate import Keys
from sp_rerank.label.session import Rules, Session

PORT = 8123
ORIGIN = f"http://127.0.0.1:{PORT}"


@pytest.fixture
def place(tmp_path):
    return make_run(tmp_path / "run", {"secret-scorer@1": [i / 7 for i in range(12)]}, seed=7_770_000)


@pytest.fixture
def store(tmp_path):
    with AnswerStore(tmp_path / "labels.sqlite") as opened:
        yield opened


@pytest.fixture
def begin(place, store):
    """Begin a session as another start of the server would."""

    def begin(person="me", goal="best", **rules):
        questions = Questions(gather([place.path]).contests, goal, np.random.default_rng(5))
        return Session(person, store, questions, Rules(**rules))

    return begin


@pytest.fixture
def session(begin):
    return begin()


@pytest.fixture
def site(session, begin):
    """The application for two people, a client that has not come in yet, and how to come in."""
    people = {"me": session, "you": begin("you")}
    keys = Keys(tuple(people))
    app = build_app(people, keys, "127.0.0.1", PORT)

    def client(person=None, **options):
        made = TestClient(app, base_url=ORIGIN, follow_redirects=False, **options)
        if person:
            assert made.get("/", params={"token": keys.tokens[person]}).status_code == 200
        return made

    return SimpleNamespace(app=app, keys=keys, client=client, sessions=people)


@pytest.fixture
def client(site):
    return site.client("me")
