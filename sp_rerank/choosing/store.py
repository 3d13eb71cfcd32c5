"""The store of answers and marks: one SQLite file, to which every answer is appended at once and nothing is taken away.

An image is known by the SHA-256 of its file, so that runs and folders can move; where it was seen last is kept beside
it, relative to the store. Undoing an answer notes when it was undone. Several processes may use one store at a time.
Knows files, answers and marks; knows nothing of models, pages or what an answer says of an image.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from sp_rerank.errors import StorageError, UsageError

FILE = "labels.sqlite"
"""Name of the store beside the runs."""

APPLICATION = 0x53505231  # "SPR1", in the head of the file
SCHEMA = 1
BUSY_SECONDS = 30.0

Kind = Literal["favorite", "reject"]

_TABLES = """
CREATE TABLE image (
    prompt TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    path TEXT NOT NULL,
    PRIMARY KEY (prompt, sha256)
) WITHOUT ROWID;
CREATE TABLE answer (
    id TEXT PRIMARY KEY,
    prompt TEXT NOT NULL,
    first_sha256 TEXT NOT NULL,
    second_sha256 TEXT NOT NULL,
    label REAL CHECK (label IN (0, 0.5, 1)),
    both_bad INTEGER NOT NULL CHECK (both_bad IN (0, 1)),
    first_side TEXT NOT NULL CHECK (first_side IN ('left', 'right')),
    repeat_of TEXT,
    shown_at REAL NOT NULL,
    answered_ms INTEGER NOT NULL,
    annotator TEXT NOT NULL,
    chooser TEXT NOT NULL,
    version TEXT NOT NULL,
    undone_at REAL
);
CREATE INDEX answer_of ON answer (annotator, prompt);
CREATE TABLE mark (
    id INTEGER PRIMARY KEY,
    prompt TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('favorite', 'reject')),
    annotator TEXT NOT NULL,
    marked_at REAL NOT NULL,
    undone_at REAL
);
CREATE INDEX mark_of ON mark (annotator, prompt);
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a person said of two images of a prompt.

    Attributes:
        id: Of its own, so that an answer that is sent twice is kept once.
        prompt: What the images should show.
        first: SHA-256 of an image file.
        second: SHA-256 of the other one.
        label: 1 if the first is better, 0 if the second, .5 if neither is; None where the question was skipped.
        both_bad: Whether neither was good; the label is .5 then.
        first_side: Where the first one was shown, "left" or "right".
        repeat_of: Id of an earlier answer to the same question; None for a new question.
        shown_at: When the question was shown, in seconds since 1970.
        answered_ms: How long it took, in milliseconds.
        annotator: Who answered.
        chooser: What chose the question: "random", "active" or "repeat".
    """

    id: str
    prompt: str
    first: str
    second: str
    label: float | None
    both_bad: bool
    first_side: str
    repeat_of: str | None
    shown_at: float
    answered_ms: int
    annotator: str
    chooser: str

    @property
    def label_of_left(self) -> float | None:
        """The label, as seen from the image on the left."""
        return self.label if self.first_side == "left" or self.label is None else 1 - self.label


@dataclass(frozen=True, slots=True)
class Mark:
    """A favorite or a rejected image of a prompt."""

    prompt: str
    sha256: str
    kind: Kind
    annotator: str


class AnswerStore:
    """An open store.

    Args:
        path: The file; made where there is none.
        read_only: Expect the file to be there, and change nothing.

    Raises:
        UsageError: If it is not such a file, is of a newer version, or is not there and should be.
        StorageError: If it cannot be opened or is damaged.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self.path = Path(path)
        if read_only and not self.path.is_file():
            raise UsageError(f"{self.path}: expected a file of answers, found none; sp-rerank label makes one")
        with _errors(self.path):
            # Each statement commits itself; threads of the server take turns under its own lock.
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(read_only)
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self, read_only: bool) -> None:
        with self._transaction("DEFERRED"):
            new = self._is_new()
        if read_only:
            if new:
                raise self._foreign()
            return
        self._write_ahead()
        self._connection.execute("PRAGMA synchronous = FULL")  # an answer survives the power, too
        with self._transaction():
            if not self._is_new():  # of two servers that begin at the same time, one makes the tables
                return
            for statement in _TABLES.split(";\n"):
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA application_id = {APPLICATION}")
            self._connection.execute(f"PRAGMA user_version = {SCHEMA}")

    def _write_ahead(self) -> None:
        """Let readers read while another writes; the file keeps that mode.

        SQLite itself does not wait for another one's transaction when it changes the mode, whatever the timeout.
        """
        until = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
            time.sleep(0.01)

    def _is_new(self) -> bool:
        """Whether the file is empty; one that is neither empty nor ours is refused.

        Within a transaction, so that its tables and its head are of the same moment.
        """
        (application,) = self._connection.execute("PRAGMA application_id").fetchone()
        (schema,) = self._connection.execute("PRAGMA user_version").fetchone()
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if application == APPLICATION and schema > SCHEMA:
            raise UsageError(
                f"{self.path} was made by a newer sp-rerank: schema {schema}, this one reads {SCHEMA}; update sp-rerank"
            )
        if application != APPLICATION and (tables or application):
            raise self._foreign()
        return application != APPLICATION

    def _foreign(self) -> UsageError:
        return UsageError(f"{self.path} is no file of answers of sp-rerank; choose another name")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self, kind: Literal["DEFERRED", "IMMEDIATE"] = "IMMEDIATE") -> Iterator[None]:
        self._connection.execute(f"BEGIN {kind}")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _change(self, sql: str, values: Sequence[object]) -> int:
        """Run a statement that changes rows, on the disk when it returns; how many."""
        with _errors(self.path):
            return self._connection.execute(sql, values).rowcount

    def _rows(self, sql: str, values: Sequence[object] = ()) -> list[tuple]:
        with _errors(self.path):
            return self._connection.execute(sql, values).fetchall()

    def revision(self) -> int:
        """A number that changes when another process changed the file."""
        return self._rows("PRAGMA data_version")[0][0]

    def remember(self, prompt: str, images: Mapping[str, Path]) -> None:
        """Note where images of a prompt are, by SHA-256."""
        rows = [(prompt, sha256, relative_to(self.path.parent, path)) for sha256, path in images.items()]
        with _errors(self.path), self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO image VALUES (?, ?, ?)", rows)

    def add(self, answer: Answer) -> bool:
        """Keep an answer; False for one that is there already."""
        values = [
            answer.id, answer.prompt, answer.first, answer.second, answer.label, int(answer.both_bad),
            answer.first_side, answer.repeat_of, answer.shown_at, answer.answered_ms, answer.annotator, answer.chooser,
            _version(),
        ]  # fmt: skip
        marks = ", ".join("?" * len(values))
        return self._change(f"INSERT INTO answer VALUES ({marks}, NULL) ON CONFLICT (id) DO NOTHING", values) == 1

    def undo(self, answer_id: str) -> bool:
        """Note that an answer was undone; False if there is none such, or it was undone before."""
        sql = "UPDATE answer SET undone_at = ? WHERE id = ? AND undone_at IS NULL"
        return self._change(sql, (time.time(), answer_id)) == 1

    def mark(self, mark: Mark) -> None:
        """Keep a mark; an earlier one of the same person on the same image is undone."""
        now = time.time()
        with _errors(self.path), self._transaction():
            self._connection.execute(
                "UPDATE mark SET undone_at = ? WHERE prompt = ? AND sha256 = ? AND annotator = ? AND undone_at IS NULL",
                (now, mark.prompt, mark.sha256, mark.annotator),
            )
            self._connection.execute(
                "INSERT INTO mark (prompt, sha256, kind, annotator, marked_at) VALUES (?, ?, ?, ?, ?)",
                (mark.prompt, mark.sha256, mark.kind, mark.annotator, now),
            )

    def answers(self, annotator: str | None = None, prompts: Iterable[str] | None = None) -> list[Answer]:
        """The answers that stand, in the order in which they were given.

        Args:
            annotator: Whose; None is everyone's.
            prompts: Of which prompts; None is of all.
        """
        sql = (
            "SELECT id, prompt, first_sha256, second_sha256, label, both_bad, first_side, repeat_of, shown_at, "
            f"answered_ms, annotator, chooser, rowid FROM answer WHERE undone_at IS NULL{_WHOSE}"
        )
        return [_answer(row) for row in self._of(sql, annotator, prompts)]

    def marks(self, annotator: str | None = None, prompts: Iterable[str] | None = None) -> list[Mark]:
        """The marks that stand, in the order in which they were made; arguments as of `answers`."""
        sql = f"SELECT prompt, sha256, kind, annotator, id FROM mark WHERE undone_at IS NULL{_WHOSE}"
        return [Mark(*row[:-1]) for row in self._of(sql, annotator, prompts)]

    def _of(self, sql: str, annotator: str | None, prompts: Iterable[str] | None) -> list[tuple]:
        """Rows of a person and of prompts, by their last column, in which they were added."""
        whose, values = (" AND annotator = ?", [annotator]) if annotator is not None else ("", [])
        if prompts is None:
            rows = self._rows(sql.replace(_WHOSE, whose), values)
        else:
            statement = sql.replace(_WHOSE, f"{whose} AND prompt = ?")
            rows = [row for prompt in dict.fromkeys(prompts) for row in self._rows(statement, [*values, prompt])]
        return sorted(rows, key=lambda row: row[-1])

    def images(self) -> dict[str, dict[str, Path]]:
        """Where the images of each prompt were seen last, by SHA-256."""
        found: dict[str, dict[str, Path]] = {}
        for prompt, sha256, path in self._rows("SELECT prompt, sha256, path FROM image ORDER BY prompt, path"):
            found.setdefault(prompt, {})[sha256] = Path(os.path.normpath(self.path.parent / path))
        return found


_WHOSE = " /* whose */"
"""In a statement, where its rows are narrowed down."""


def relative_to(folder: Path, path: Path) -> str:
    """A path as it is written into a file of a folder: from there where that can be, with forward slashes."""
    try:
        return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()
    except ValueError:  # another drive
        return path.absolute().as_posix()


def _answer(row: tuple[Any, ...]) -> Answer:
    values = dict(zip((entry.name for entry in fields(Answer)), row, strict=False))  # the last is its place in the file
    return Answer(**{**values, "both_bad": bool(values["both_bad"])})


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors about a file into one line that says what to do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StorageError(f"{path}: {error}; check the folder, its permissions and its space") from error
    except sqlite3.DatabaseError as error:
        raise StorageError(f"{path} is no sound file of answers: {error}; restore it from a copy") from error


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sp-rerank")
    except PackageNotFoundError:  # a checkout that is not installed
        return "unknown"
