"""The store: nothing is lost, nothing is there twice, nothing is taken away, and what is no store is refused."""

from __future__ import annotations

import sqlite3
import threading

import pytest
from support.answers import PROMPT, answer_of

from sp_rerank.choosing.store import AnswerStore, Mark
from sp_rerank.errors import StorageError, UsageError


@pytest.fixture
def store(tmp_path):
    with AnswerStore(tmp_path / "labels.sqlite") as opened:
        yield opened


def test_answers_come_back_as_they_were_in_their_order(store):
    given = [
        answer_of(2, 1, 0.0, prompt="z"),
        answer_of(1, 2, 0.5, both_bad=True, first_side="right", annotator="you"),
        answer_of(1, 3, None, repeat_of="2-1-0.0", answered_ms=120, chooser="repeat"),
    ]
    assert [store.add(answer) for answer in given] == [True] * 3
    with AnswerStore(store.path) as again:
        assert again.answers() == given
        assert again.answers("me") == [given[0], given[2]]
        assert again.answers(prompts=[PROMPT, "z"]) == given, "in the order in which they were given"
        assert again.answers("me", ["z"]) == [given[0]]


def test_an_answer_that_is_sent_twice_is_kept_once(store):
    assert store.add(answer_of(1, 2, 1.0))
    assert not store.add(answer_of(1, 2, 1.0))
    assert len(store.answers()) == 1


def test_undoing_takes_nothing_away(store):
    store.add(answer_of(1, 2))
    assert store.undo("1-2-1.0")
    assert not store.undo("1-2-1.0")
    assert not store.undo("never")
    assert store.answers() == []
    ((count, undone),) = sqlite3.connect(store.path).execute("SELECT count(*), max(undone_at) > 0 FROM answer")
    assert (count, undone) == (1, 1)


def test_a_later_mark_takes_the_place_of_an_earlier_one(store):
    store.mark(Mark(PROMPT, "a", "favorite", "me"))
    store.mark(Mark(PROMPT, "a", "favorite", "you"))
    store.mark(Mark(PROMPT, "a", "reject", "me"))
    assert [(mark.kind, mark.annotator) for mark in store.marks()] == [("favorite", "you"), ("reject", "me")]
    assert [mark.kind for mark in store.marks("me", [PROMPT])] == ["reject"]


def test_images_are_found_where_they_were_seen_last_also_when_all_was_moved(store, tmp_path):
    store.remember(PROMPT, {"a": tmp_path / "old" / "1.png"})
    store.remember(PROMPT, {"a": tmp_path / "run" / "1.png", "b": tmp_path / "2.png"})
    assert store.images() == {PROMPT: {"a": tmp_path / "run" / "1.png", "b": tmp_path / "2.png"}}
    store.close()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "labels.sqlite").rename(moved / "labels.sqlite")
    with AnswerStore(moved / "labels.sqlite") as again:
        assert again.images()[PROMPT]["a"] == moved / "run" / "1.png"


def test_two_servers_on_one_store_lose_nothing(store):
    def work(name):
        with AnswerStore(store.path) as own:
            for i in range(60):
                own.add(answer_of(i, name, id=f"{name}-{i}", annotator=name))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two", "three")]
    before = store.revision()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.answers()) == 180
    assert [answer.id for answer in store.answers("two")] == [f"two-{i}" for i in range(60)]
    assert store.revision() != before


def test_servers_that_begin_at_the_same_time_make_one_store(tmp_path):
    failed = []

    def begin():
        try:
            with AnswerStore(tmp_path / "new.sqlite") as own:
                own.add(answer_of(1, 2, id=str(threading.get_ident())))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    with AnswerStore(tmp_path / "new.sqlite") as store:
        assert len(store.answers()) == len({answer.id for answer in store.answers()}) > 0


def test_a_store_that_another_server_makes_while_this_one_looks_is_no_foreign_file(tmp_path, monkeypatch):
    path = tmp_path / "new.sqlite"
    connect = sqlite3.connect
    others = []

    class Interrupted(sqlite3.Connection):
        """A connection that another server is faster than, between two looks at the file."""

        def execute(self, sql, *values):
            if sql.startswith("SELECT count(*)") and not others:
                others.append(threading.Thread(target=lambda: AnswerStore(path).close()))
                monkeypatch.setattr(sqlite3, "connect", connect)
                others[0].start()
                others[0].join(0.5)
            return super().execute(sql, *values)

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=Interrupted, **options))
    with AnswerStore(path) as own:
        others[0].join()
        assert own.add(answer_of(1, 2))


def test_a_server_that_makes_a_new_store_is_waited_for(tmp_path):
    path = tmp_path / "new.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    later = threading.Timer(0.3, lambda: other.execute("COMMIT"))
    later.start()
    with AnswerStore(path) as own:
        assert own.add(answer_of(1, 2))
    later.join()
    other.close()


def test_many_answers_of_others_are_no_burden(store):
    connection = sqlite3.connect(store.path)
    connection.execute("""
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
        INSERT INTO answer SELECT 'x' || i, 'prompt ' || (i % 500), 'a', 'b', 1, 0, 'left', NULL, 0, 900, 'them',
            'random', '0', NULL FROM n
    """)
    connection.commit()
    store.add(answer_of(1, 2))
    assert len(store.answers("me", [PROMPT])) == 1
    assert len(store.answers("them", ["prompt 7"])) == 200
    plan = connection.execute(
        "EXPLAIN QUERY PLAN SELECT id FROM answer WHERE undone_at IS NULL AND annotator = 'me' AND prompt = 'z'"
    ).fetchall()
    assert "answer_of" in str(plan)


def test_another_version_and_other_files_are_refused(tmp_path):
    newer = tmp_path / "newer.sqlite"
    AnswerStore(newer).close()
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(UsageError, match="made by a newer sp-rerank: schema 2, this one reads 1; update"):
        AnswerStore(newer)
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    before = other.read_bytes()
    with pytest.raises(UsageError, match="no file of answers"):
        AnswerStore(other)
    assert other.read_bytes() == before
    (tmp_path / "text.sqlite").write_text("no database, " * 100)
    with pytest.raises(StorageError, match="no sound file of answers"):
        AnswerStore(tmp_path / "text.sqlite")
    with pytest.raises(UsageError, match="found none; sp-rerank label makes one"):
        AnswerStore(tmp_path / "none.sqlite", read_only=True)
    assert not (tmp_path / "none.sqlite").exists()
    with pytest.raises(StorageError, match="check the folder"):
        AnswerStore(tmp_path / "no folder" / "labels.sqlite")
