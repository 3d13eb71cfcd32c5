"""A run folder that one process writes: lock, commit, resume, conclude. Knows files; knows no model or scorer.

Longer than 350 lines because whatever appends to the two journals shares their committed ends.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from sp_rerank.config import RunConfig
from sp_rerank.errors import StorageError, UsageError
from sp_rerank.run.commit_queue import CommitQueue
from sp_rerank.run.folder import RunDir, read_rows
from sp_rerank.run.layout import (
    CONFIG,
    DRAFTS,
    GRID,
    IMAGE_NAME,
    IMAGES,
    MANIFEST,
    RESULT,
    STAGES,
    TOP,
    TOP_NAME,
    bytes_of,
    draft_name,
    entries,
    inside,
    leftovers,
)  # fmt: skip
from sp_rerank.run.opening import Opening, check_space, open_as
from sp_rerank.run.png import to_finished_png, to_stage_png
from sp_rerank.run.records import SCHEMA, Row, StageLine, StageScore, encode_config, parse_config, parse_stages
from sp_rerank.run.state import Finished, RunState, dropped_row
from sp_rerank.run.summary import RunSummary, encode_summary
from sp_rerank.stats.ranking import finite
from sp_rerank.storage import atomic, images
from sp_rerank.types import Candidate

log = logging.getLogger(__name__)


class RunWriter(RunDir):
    """A run folder that this process alone writes to, made by `RunWriter.start`; a `sp_rerank.run.state.Store`."""

    _end: int
    """Length in bytes of the committed part of the manifest."""

    _stages_end: int
    """Length in bytes of the committed part of stages.jsonl."""

    _summary: RunSummary | None = None
    """Set while the run is concluded, before result.json is written."""

    _queue: CommitQueue | None = None
    """Commits what `add` and `add_stages` were given, beside the run."""

    _unwritten: set[int]
    """Candidates that are in `rows` and still to be committed; the hashes of their files are not known yet."""

    _threads: ThreadPoolExecutor | None = None
    """Write the files of all batches."""

    def __init__(self, path: Path, config: RunConfig, rows: dict[int, Row]) -> None:
        super().__init__(path, config, rows)
        self._unwritten = set()

    @classmethod
    @contextmanager
    def start(
        cls, path: str | Path, config: RunConfig, *, resume: bool = False, more: int | None = None, image_bytes: int = 0
    ) -> Generator[RunWriter]:
        """Open a folder for writing a run, and hold its lock meanwhile. A complete run opens with all its rows.

        A run that is over and is asked for more candidates grows.

        What a killed process left (a torn line, temporary files, images without a line) is removed first. With
        `resume`, candidates whose image is gone or changed are missing again, with a log warning each. A folder of an
        older schema is brought to this one.

        Args:
            path: The folder; made where it does not exist.
            config: Of the run. Two runs are the same run if it is equal up to the number of candidates.
            resume: Go on with a folder that already holds some of the candidates.
            more: Number of candidates to add to a run that is over; `config.n` then says nothing.
            image_bytes: Expected size of one image file; room for those that are missing is checked first.

        Raises:
            UsageError: If the folder holds another configuration, a part of this one without `resume`, or is no run
                folder and not empty.
            FolderBusyError: If another process writes this very run there.
            StorageError: If the folder cannot be written, is too full or damaged.
            ValueError: If `config` is not for JSON.
        """
        path = Path(path)
        asked, _ = parse_config(encode_config(config), CONFIG)  # as JSON gives it back: a tuple compares as a list
        open_as(path, asked, more)  # before the lock: another configuration is a mistake, busy or not
        with atomic.locked(path):
            run = cls._open(path, open_as(path, asked, more), resume, image_bytes)  # now no other process can change it
            try:
                yield run
            finally:
                run._close()

    @classmethod
    def _open(cls, path: Path, opening: Opening, resume: bool, image_bytes: int) -> RunWriter:
        rows, end = read_rows(path)
        run = cls(path, opening.config, rows)
        run._end = end
        if resume:
            run._give_up_damaged()
        run._read_stages(resume)
        if (run.rows or run.stages) and run.missing and not resume and not opening.grows:
            held = f"{path} holds {len(rows)} of {opening.held} candidates of this run"
            raise UsageError(f"{held}; resume it, or choose another folder")
        check_space(path, image_bytes * len(run.missing))
        run._prepare(opening.schema)
        return run

    @property
    def state(self) -> RunState:
        """The run itself."""
        return self

    @property
    def result(self) -> RunSummary | None:
        """How the run ends, while its pages are drawn; None before."""
        return self._summary

    def _prepare(self, schema: int | None) -> None:
        """Make what a run folder has, and remove what an interrupted process left."""
        with atomic.storage_errors(self.path):
            inside(self.path, RESULT).unlink(missing_ok=True)  # from here on the run goes on
            if schema is None:
                atomic.sync_folder(self.path.parent)
            config = encode_config(self.config)
            if bytes_of(inside(self.path, CONFIG)) != config:  # a new run, a larger one, or of an older schema
                atomic.write(self.path / CONFIG, config)
            inside(self.path, IMAGES).mkdir(exist_ok=True)
            manifest = inside(self.path, MANIFEST)
            manifest.touch()
            atomic.sync_folder(self.path)
            atomic.append(manifest, b"", at=self._end)
            if inside(self.path, STAGES).exists():
                atomic.append(inside(self.path, STAGES), b"", at=self._stages_end)
            for path in leftovers(self.path):
                path.unlink()
            for path in self.uncommitted():
                if IMAGE_NAME.fullmatch(path.name) and int(path.stem) < self.n:
                    path.unlink()
        if schema not in (None, SCHEMA):
            self._replace_rows(self.rows)

    def _give_up_damaged(self) -> None:
        """Take back the commit of each candidate whose image is no longer what was committed."""
        problems = {index: problem for index in self.rows if (problem := self.image_problem(index))}
        for problem in problems.values():
            log.warning("%s; it is made again", problem)
        if problems:
            self._replace_rows({index: row for index, row in self.rows.items() if index not in problems})
            self.replace_stages({index: row.stages for index, row in self.rows.items() if row.stages})

    def _read_stages(self, resume: bool) -> None:
        """What an unfinished search saw; with `resume`, candidates whose draft is gone or changed are forgotten."""
        journal = inside(self.path, STAGES)
        lines, self._stages_end = parse_stages(bytes_of(journal), str(journal))
        if resume and (lost := self._lost_drafts(lines)):
            lines = [line for line in lines if line.index not in lost]
            text = b"".join(line.to_line() for line in lines)
            atomic.write(journal, text)
            self._stages_end = len(text)
        noted: dict[int, tuple[StageScore, ...]] = {}
        for line in lines:
            noted[line.index] = (*noted.get(line.index, ()), line.stage)
        self.replace_stages(noted | self.stages)

    def _lost_drafts(self, lines: Sequence[StageLine]) -> set[int]:
        """Candidates that are not committed and whose draft is not the one that was noted last."""
        noted = {line.index: line.sha256 for line in lines if line.index not in self.rows}
        looks = Counter(line.index for line in lines)
        drafts = {index: bytes_of(inside(self.path, DRAFTS) / draft_name(index, looks[index])) for index in noted}
        lost = {index for index, png in drafts.items() if atomic.sha256_of(png) != noted[index]}
        for index in sorted(lost):
            log.warning("the draft of candidate %d is gone or changed; it is made again", index)
        return lost

    def add(self, batch: Sequence[Finished]) -> None:
        """Take finished candidates into the run and commit them beside it; one that is committed stays as it is.

        Raises:
            StorageError: If an earlier batch could not be written.
        """
        rows = [Row.of(b"", made, self.stages) for made in batch]
        new = {row.index: row for row in rows if row.index not in self.rows}
        self._unwritten.update(new)
        self.put_rows(new)
        encoders = [partial(to_finished_png, made, self.config) for made in batch]
        self._submit(encoders, lambda files: self.commit(list(map(_with_hash, rows, files))))

    def add_stages(self, batch: Sequence[tuple[Candidate, StageScore]]) -> None:
        """Note what a search saw of candidates, and keep it beside the run with the image that it saw.

        Raises:
            StorageError: If an earlier batch could not be written.
        """
        encoders = [partial(to_stage_png, candidate, self.config, seen) for candidate, seen in batch]
        seen = [(candidate.index, seen) for candidate, seen in batch]
        looks = self._looks(seen)
        self._submit(encoders, lambda files: self._write_stages(looks, files))
        self.note_stages(seen)

    def _looks(self, batch: Sequence[tuple[int, StageScore]]) -> list[tuple[int, int, StageScore]]:
        """Candidates with the number of this look at each, from 1 on."""
        return [(index, len(self.stages.get(index, ())) + 1, seen) for index, seen in batch]

    def _submit(self, encoders: Sequence[Callable[[], bytes]], commit: Callable[[list[bytes]], None]) -> None:
        if self._queue is None:
            self._queue = CommitQueue()
            self._threads = atomic.writing_threads()
        with self._giving_up_unwritten():
            self._queue.submit(encoders, commit)

    def _drain(self) -> None:
        """Wait until everything that was added is committed."""
        if self._queue:
            with self._giving_up_unwritten():
                self._queue.drain()

    def _close(self) -> None:
        try:
            if self._queue:
                with self._giving_up_unwritten():
                    self._queue.close()
        finally:
            self._queue = None
            if self._threads:
                self._threads.shutdown()
            self._threads = None

    @contextmanager
    def _giving_up_unwritten(self) -> Generator[None]:
        """Where a commit failed, what is not committed is no part of the run any more."""
        try:
            yield
        except BaseException:
            if self._unwritten:
                self.forget_rows(self._unwritten)
            self._unwritten.clear()
            raise

    def add_dropped(self) -> None:
        """Commit the candidates that the search did not finish, with the image that it saw last."""
        self._drain()
        drafts = {index: self.draft(index) for index in self.unfinished() if index not in self.rows}
        if drafts:
            self.commit([(dropped_row(self, index, atomic.sha256_of(png)), png) for index, png in drafts.items()])

    def candidate(self, index: int) -> Candidate:
        """A committed candidate with its image."""
        self._drain()
        return Candidate(index, self.rows[index].seed, self.read_image(index))

    def commit(self, batch: Sequence[tuple[Row, bytes]]) -> None:
        """Make candidates part of the run: their images, then their lines, all on the disk when this returns.

        A candidate that is committed already stays as it is, for a batch is made again whole on resume; a log warning
        says so if it came out different.

        Args:
            batch: The row of each and its image file.

        Raises:
            StorageError: If it cannot be written; the folder then is as it was before.
            ValueError: If an index is out of its range.
        """
        committed = {row.index for row, _ in batch if row.index in self.rows and row.index not in self._unwritten}
        for row, _ in batch:
            if row.index >= self.n:
                raise ValueError(f"candidate {row.index} is outside 0..{self.n - 1}")
            if row.index in committed and self.rows[row.index].sha256 != row.sha256:
                log.warning("candidate %d came out different when made again; the first one is kept", row.index)
        new = {row.index: (row, png) for row, png in batch if row.index not in committed}
        files = {inside(self.path, row.file): png for row, png in new.values()}
        lines = b"".join(row.to_line() for row, _ in new.values())
        try:
            atomic.write_all(files, self._threads)
            self._end = atomic.append(inside(self.path, MANIFEST), lines, at=self._end)
        except StorageError:
            for image in files:
                with suppress(OSError):
                    image.unlink()
            raise
        self.put_rows({index: row for index, (row, _) in new.items()})
        self._unwritten.difference_update(new)
        stages = {index: row.stages for index, (row, _) in new.items() if row.stages}
        if any(self.stages.get(index) != seen for index, seen in stages.items()):  # committed without a note before
            self.replace_stages(self.stages | stages)

    def commit_stages(self, batch: Sequence[tuple[int, StageScore, bytes]]) -> None:
        """Keep what a search saw of candidates on the way, so that a resumed search need not look again.

        Args:
            batch: Index and stage of each, and an image file of what was seen.

        Raises:
            StorageError: If it cannot be written.
        """
        seen = [(index, stage) for index, stage, _ in batch]
        self._write_stages(self._looks(seen), [png for _, _, png in batch])
        self.note_stages(seen)

    def _write_stages(self, looks: Sequence[tuple[int, int, StageScore]], files: Sequence[bytes]) -> None:
        """Write the files, then the lines; only then does what was seen before go, so that a kill loses no score."""
        folder, journal = inside(self.path, DRAFTS), inside(self.path, STAGES)
        with atomic.storage_errors(folder):
            folder.mkdir(exist_ok=True)
            if not journal.exists():
                atomic.write(journal, b"")
            names = [draft_name(index, look) for index, look, _ in looks]
            atomic.write_all({folder / name: png for name, png in zip(names, files, strict=True)}, self._threads)
        lines = [
            StageLine(index, seen, atomic.sha256_of(png)).to_line()
            for (index, _, seen), png in zip(looks, files, strict=True)
        ]
        self._stages_end = atomic.append(journal, b"".join(lines), at=self._stages_end)
        with atomic.storage_errors(folder):
            for index, look, _ in looks:
                if look > 1:
                    (folder / draft_name(index, look - 1)).unlink(missing_ok=True)

    def draft(self, index: int) -> bytes:
        """The image file of what the search saw last of a candidate.

        Raises:
            StorageError: If it cannot be read.
        """
        path = inside(self.path, DRAFTS) / draft_name(index, len(self.stages[index]))
        with atomic.storage_errors(path):
            return path.read_bytes()

    def finish(
        self, best: Sequence[int], summary: RunSummary | None = None, present: Callable[[RunDir], None] | None = None
    ) -> None:
        """Put copies of the best into top/, draw the pages, and write result.json, in place of an earlier finish.

        The manifest is put in the order of the indices, in whatever order the candidates were committed; the notes of
        a search go, for the rows hold them now.

        Args:
            best: Indices of committed candidates, the best first.
            summary: How the run ended; it is result.json, written last. None writes none: the run goes on.
            present: Draws the contact sheet and the gallery of the folder; None leaves the folder without a sheet.

        Raises:
            UsageError: If one of `best` is not in the run.
            StorageError: If an image is damaged or a file cannot be written.
        """
        self._drain()
        rows = self.ranked_rows()
        if list(self.rows.items()) != list(rows.items()):
            self._replace_rows(rows)
        images_of_best = [self.image_bytes(index) for index in best]
        copies = {
            f"{rank:02d}_seed{self.rows[index].seed}.png": _with_rank(png, rank)
            for rank, (index, png) in enumerate(zip(best, images_of_best, strict=True), start=1)
        }
        top = inside(self.path, TOP)
        with atomic.storage_errors(top):
            top.mkdir(exist_ok=True)
            atomic.write_all({top / name: png for name, png in copies.items()})
            _remove_stale(top, copies)
            inside(self.path, GRID).unlink(missing_ok=True)
        self._forget_drafts()
        self._summary = summary
        if present:
            present(self)
        if summary:
            atomic.write(inside(self.path, RESULT), encode_summary(summary))

    def _forget_drafts(self) -> None:
        folder = inside(self.path, DRAFTS)
        with atomic.storage_errors(folder):
            inside(self.path, STAGES).unlink(missing_ok=True)
            for path in entries(self.path, DRAFTS):
                path.unlink()
            if folder.is_dir():
                folder.rmdir()

    def _replace_rows(self, rows: dict[int, Row]) -> None:
        lines = b"".join(row.to_line() for row in rows.values())
        atomic.write(inside(self.path, MANIFEST), lines)
        self.replace_rows(rows)
        self._end = len(lines)


def add_scores(path: str | Path, scores: Mapping[str, Mapping[int, float]]) -> RunDir:
    """Add the scores of other scorers to the rows of a run; its configuration still names those that it was made with.

    Args:
        path: A run folder.
        scores: By the scorer's full name and the candidate's index; one that is not finite is kept as such.

    Returns:
        The run as it is then.

    Raises:
        UsageError: If it is no run folder, or a candidate is not in it.
        FolderBusyError: If another process writes to it.
        StorageError: If it cannot be written.
    """
    config = RunDir.read(path).config
    path = Path(path)
    with atomic.locked(path):
        rows, end = read_rows(path)
        run = RunWriter(path, config, rows)
        run._end = end  # pyright: ignore[reportPrivateUsage]
        absent = sorted({index for column in scores.values() for index in column} - rows.keys())
        if absent:
            raise UsageError(f"{path} holds no candidate {absent[0]}; it holds {len(rows)} of {run.n}")
        run._replace_rows({index: _scored(row, scores) for index, row in rows.items()})  # pyright: ignore[reportPrivateUsage]
    return RunDir(path, config, run.rows)


def _scored(row: Row, scores: Mapping[str, Mapping[int, float]]) -> Row:
    new = {name: float(column[row.index]) for name, column in scores.items() if row.index in column}
    return replace(row, scores={**row.scores, **{name: finite(score) for name, score in new.items()}})


def _with_hash(row: Row, file: bytes) -> tuple[Row, bytes]:
    """A row and its file, whose hash is in it."""
    return replace(row, sha256=atomic.sha256_of(file)), file


def _with_rank(png: bytes, rank: int) -> bytes:
    """An image file whose record also holds its rank; a file without a record stays as it is."""
    return images.amend_record(png, {"rank": rank}) if images.has_record(png) else png


def _remove_stale(top: Path, names: Iterable[str]) -> None:
    for path in entries(top):
        if TOP_NAME.fullmatch(path.name) and path.name not in names:
            path.unlink()
