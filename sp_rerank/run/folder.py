"""The run folder: one writer, whole images, one line per candidate, resume and verify.

    run.json            schema and configuration, without times: a resumed run's files are those of an uninterrupted one
    candidates.jsonl    one line per candidate; the line is the commit
    images/00057.png    written before its line
    stages.jsonl        while a search goes on: a line per candidate and stage
    drafts/00057.png    likewise: what the search saw of it last
    top/01_seed57.png   copies of the best
    grid.png

Knows files. Knows nothing of models, of how images are made or of what a score means.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sp_rerank.errors import FolderBusyError, StorageError, UsageError
from sp_rerank.run.records import Row, Seen, Stage, encode_config, parse_config, parse_rows, parse_seen
from sp_rerank.storage import atomic

log = logging.getLogger(__name__)

CONFIG = "run.json"
MANIFEST = "candidates.jsonl"
IMAGES = "images"
TOP = "top"
GRID = "grid.png"
STAGES = "stages.jsonl"
DRAFTS = "drafts"
LOCK = ".lock"

_BEFORE_CONFIG = {LOCK, CONFIG + atomic.TEMPORARY_SUFFIX}
"""What a start that was cut short can leave in a folder that has no run.json yet."""

_IMAGE_NAME = re.compile(r"[0-9]{5,}\.png")
_TOP_NAME = re.compile(r"[0-9]{2,}_seed-?[0-9]+\.png")


def run_folder_name(config: Mapping[str, Any]) -> str:
    """A folder name for a run: what is ASCII of its prompt, and a hash that tells configurations of one prompt apart.

    Nothing of the prompt but a-z, 0-9 and hyphens gets into the name, so it is one path component on every system.

    Args:
        config: with its "prompt" and "n".

    Returns:
        At most 49 characters, for example "a-lemon-on-the-beach-1f0c33ab".
    """
    ascii_only = unicodedata.normalize("NFKD", config["prompt"]).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_only)[:40].strip("-") or "run"
    return f"{slug}-{hashlib.sha256(encode_config(config)).hexdigest()[:8]}"


class RunDir:
    """A run folder as it stands on the disk, for reading.

    Attributes:
        path: the folder.
        config: the configuration in run.json, with "n" and without the schema's number.
        rows: the committed candidates by index, in the order of their commits.
    """

    def __init__(self, path: Path, config: dict[str, Any], rows: dict[int, Row]):
        self.path = path
        self.config = config
        self.rows = rows

    @classmethod
    def read(cls, path: str | Path) -> RunDir:
        """The run in a folder, also while another process writes to it: no lock is taken and nothing is changed.

        Raises:
            UsageError: if it is not a run folder or one of a newer version.
            StorageError: if it cannot be read or its manifest is damaged.
        """
        path = Path(path)
        config = _read_config(path)
        if config is None:
            raise UsageError(f"{path} is not a run folder: there is no {CONFIG} in it")
        rows, _ = _read_rows(path)
        return RunDir(path, config, rows)

    @property
    def n(self) -> int:
        """How many candidates the run is to have."""
        return self.config["n"]

    @property
    def missing(self) -> list[int]:
        """Indices that are not committed yet, rising; empty once the run is complete."""
        return [index for index in range(self.n) if index not in self.rows]

    @property
    def spent(self) -> int:
        """Evaluations of the denoiser, on all committed candidates."""
        return sum(row.unet_evaluations for row in self.rows.values())

    @property
    def evaluations_each(self) -> int:
        """Evaluations that finishing one candidate takes; 0 where none is finished."""
        return max((row.own_evaluations for row in self.rows.values() if row.status != "dropped"), default=0)

    def image(self, index: int) -> Path:
        """Path of a committed candidate's image.

        Raises:
            UsageError: if the candidate is not in the run.
            StorageError: if the path leads out of the folder, through a link.
        """
        if index not in self.rows:
            raise UsageError(f"{self.path} holds no candidate {index}; it holds {len(self.rows)} of {self.n}")
        return _inside(self.path, self.rows[index].file)

    def verify(self) -> list[str]:
        """What is wrong with the folder, one line each; an empty list says that every image is as it was committed.

        An unfinished run can be sound. A run that was killed may show an image without its line, or a temporary file;
        the next `--resume` removes both.

        Raises:
            StorageError: if a file that is there cannot be read, or images/ or top/ is a link out of the folder.
        """
        problems = [f"candidate {index} is outside 0..{self.n - 1}" for index in self.rows if index >= self.n]
        problems += [problem for row in self.rows.values() if (problem := self._image_problem(row))]
        problems += [f"{self._short(path)}: left by an interrupted write" for path in _leftovers(self.path)]
        return problems + [f"{self._short(path)}: not in {MANIFEST}" for path in self._uncommitted()]

    def _short(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    def _image_problem(self, row: Row) -> str | None:
        try:
            path = _inside(self.path, row.file)
        except StorageError as error:
            return str(error)
        if not path.is_file():
            return f"{row.file}: missing"
        with atomic.storage_errors(path), path.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == row.sha256
        return None if same else f"{row.file}: changed since it was committed (sha256 differs)"

    def _uncommitted(self) -> list[Path]:
        """What is in images/ without a line in the manifest; temporary files aside."""
        committed = {Path(row.file).name for row in self.rows.values()}
        return [
            path
            for path in _entries(self.path, IMAGES)
            if path.name not in committed and not path.name.endswith(atomic.TEMPORARY_SUFFIX)
        ]


class RunWriter(RunDir):
    """A run folder that this process alone writes to; made by `RunWriter.start`."""

    _end: int
    """Length in bytes of the committed part of the manifest."""

    seen: dict[int, tuple[Stage, ...]]
    """What a search saw of each candidate before it was finished, in order; of committed ones too."""

    _seen_end: int
    """Length in bytes of the committed part of stages.jsonl."""

    @classmethod
    @contextmanager
    def start(
        cls, path: str | Path, config: Mapping[str, Any], *, resume: bool = False, image_bytes: int = 0
    ) -> Iterator[RunWriter]:
        """Open a folder for writing a run, and hold its lock meanwhile. A complete run opens with all its rows.

        What a killed process left (a torn line, temporary files, images without a line) is removed first. With
        `resume`, candidates whose image is gone or changed are missing again, with a log warning each.

        Args:
            path: the folder; made where it does not exist.
            config: what JSON can hold; "n" is the number of candidates. Two runs are the same run if it is equal.
            resume: go on with a folder that already holds some of the candidates.
            image_bytes: expected size of one image file; room for those that are missing is checked first.

        Raises:
            UsageError: if the folder holds another configuration, a part of this one without `resume`, or is no run
                folder and not empty.
            FolderBusyError: if another process writes this very run there.
            StorageError: if the folder cannot be written, is too full or damaged.
            ValueError: if `config` has no "n" or is not for JSON.
        """
        path = Path(path)
        asked = parse_config(encode_config(config), CONFIG)  # as JSON gives it back: a tuple compares as a list
        _check_same_run(path, asked)  # before the lock: another configuration is a mistake, busy or not
        with atomic.storage_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            yield cls._open(path, asked, resume, image_bytes)

    @classmethod
    def _open(cls, path: Path, config: dict[str, Any], resume: bool, image_bytes: int) -> RunWriter:
        _check_same_run(path, config)  # again, now that nobody else can change it
        rows, end = _read_rows(path)
        run = cls(path, config, rows)
        run._end = end
        if resume:
            run._give_up_damaged()
            rows = run.rows
        run._read_seen(resume)
        run.seen |= {index: row.stages for index, row in rows.items() if row.stages}
        if (rows or run.seen) and run.missing and not resume:
            raise UsageError(
                f"{path} holds {len(rows)} of {run.n} candidates of this run; "
                "add --resume to go on, or choose another folder with --out"
            )
        _check_space(path, image_bytes * len(run.missing))
        run._prepare()
        return run

    def _prepare(self) -> None:
        """Make what a run folder has, and remove what an interrupted process left."""
        with atomic.storage_errors(self.path):
            if not (self.path / CONFIG).exists():
                atomic.sync_folder(self.path.parent)
                atomic.write(self.path / CONFIG, encode_config(self.config))
            _inside(self.path, IMAGES).mkdir(exist_ok=True)
            manifest = _inside(self.path, MANIFEST)
            manifest.touch()
            atomic.sync_folder(self.path)
            atomic.append(manifest, b"", at=self._end)
            if _inside(self.path, STAGES).exists():
                atomic.append(_inside(self.path, STAGES), b"", at=self._seen_end)
            for path in _leftovers(self.path):
                path.unlink()
            for path in self._uncommitted():
                if _IMAGE_NAME.fullmatch(path.name) and int(path.stem) < self.n:
                    path.unlink()

    def _give_up_damaged(self) -> None:
        """Take back the commit of each candidate whose image is no longer what was committed."""
        problems = {index: problem for index, row in self.rows.items() if (problem := self._image_problem(row))}
        for problem in problems.values():
            log.warning("%s; it is made again", problem)
        if problems:
            self._replace_rows({index: row for index, row in self.rows.items() if index not in problems})

    def _read_seen(self, resume: bool) -> None:
        """What an unfinished search saw; with `resume`, candidates whose draft is gone or changed are forgotten."""
        journal = _inside(self.path, STAGES)
        lines, self._seen_end = parse_seen(_bytes_of(journal), str(journal))
        if resume and (lost := self._lost_drafts(lines)):
            lines = [line for line in lines if line.index not in lost]
            text = b"".join(line.to_line() for line in lines)
            atomic.write(journal, text)
            self._seen_end = len(text)
        self.seen = {}
        for line in lines:
            self.seen[line.index] = (*self.seen.get(line.index, ()), line.stage)

    def _lost_drafts(self, lines: Sequence[Seen]) -> set[int]:
        """Candidates that are not committed and whose draft is not the one that was noted last."""
        noted = {line.index: line.sha256 for line in lines if line.index not in self.rows}
        drafts = {index: _bytes_of(_inside(self.path, DRAFTS) / _draft_name(index)) for index in noted}
        lost = {index for index, png in drafts.items() if hashlib.sha256(png).hexdigest() != noted[index]}
        for index in sorted(lost):
            log.warning("the draft of candidate %d is gone or changed; it is made again", index)
        return lost

    def commit(self, batch: Sequence[tuple[Row, bytes]]) -> list[Row]:
        """Make candidates part of the run: their images, then their lines, all on the disk when this returns.

        A candidate that is committed already stays as it is, for a batch is made again whole on resume; a log warning
        says so if it came out different.

        Args:
            batch: the row of each, from `Row.of`, and its image file.

        Returns:
            The committed rows, in the batch's order.

        Raises:
            StorageError: if it cannot be written; the folder then is as it was before.
            ValueError: if an index is out of its range.
        """
        for row, _ in batch:
            if row.index >= self.n:
                raise ValueError(f"candidate {row.index} is outside 0..{self.n - 1}")
        new = {row.index: (row, png) for row, png in batch if row.index not in self.rows}
        files = {_inside(self.path, row.file): png for row, png in new.values()}
        lines = b"".join(row.to_line() for row, _ in new.values())
        try:
            atomic.write_all(files)
            self._end = atomic.append(_inside(self.path, MANIFEST), lines, at=self._end)
        except StorageError:
            for image in files:
                with suppress(OSError):
                    image.unlink()
            raise
        kept = [row if row.index in new else self._kept(row) for row, _ in batch]
        self.rows |= {index: row for index, (row, _) in new.items()}
        return kept

    def see(self, batch: Sequence[tuple[int, Stage, bytes]]) -> None:
        """Keep what a search saw of candidates on the way, so that a resumed search need not look again.

        Args:
            batch: index and stage of each, and an image file of what was seen; it replaces that of an earlier stage.

        Raises:
            StorageError: if it cannot be written.
        """
        folder, journal = _inside(self.path, DRAFTS), _inside(self.path, STAGES)
        with atomic.storage_errors(folder):
            folder.mkdir(exist_ok=True)
            if not journal.exists():
                atomic.write(journal, b"")
            atomic.write_all({folder / _draft_name(index): png for index, _, png in batch})
        lines = [Seen(index, stage, hashlib.sha256(png).hexdigest()).to_line() for index, stage, png in batch]
        self._seen_end = atomic.append(journal, b"".join(lines), at=self._seen_end)
        for index, stage, _ in batch:
            self.seen[index] = (*self.seen.get(index, ()), stage)

    def draft(self, index: int) -> bytes:
        """The image file of what the search saw last of a candidate.

        Raises:
            StorageError: if it cannot be read.
        """
        path = _inside(self.path, DRAFTS) / _draft_name(index)
        with atomic.storage_errors(path):
            return path.read_bytes()

    def _kept(self, row: Row) -> Row:
        kept = self.rows[row.index]
        if kept.sha256 != row.sha256:
            log.warning("candidate %d came out different when made again; the first one is kept", row.index)
        return kept

    def finish(
        self, best: Sequence[int], *, grid: bytes | None = None, amend: Callable[[bytes, int], bytes] | None = None
    ) -> list[Path]:
        """Put copies of the best into top/ and the contact sheet beside it, in place of those of an earlier finish.

        The manifest is put in the order of the indices, in whatever order the candidates were committed; the notes of
        a search go, for the rows hold them now.

        Args:
            best: indices of committed candidates, the best first.
            grid: the contact sheet as a PNG file.
            amend: what makes the copy of a rank out of an image file; the file as it is by default.

        Returns:
            The paths of the copies, the best first.

        Raises:
            UsageError: if one of `best` is not in the run.
            StorageError: if an image is damaged or a file cannot be written.
        """
        self._sort_manifest()
        copies = {}
        for rank, index in enumerate(best, start=1):
            png = self._bytes(index)
            if amend:
                png = amend(png, rank)
            copies[f"{rank:02d}_seed{self.rows[index].seed}.png"] = png
        top = _inside(self.path, TOP)
        with atomic.storage_errors(top):
            top.mkdir(exist_ok=True)
            atomic.write_all({top / name: png for name, png in copies.items()})
            _remove_stale(top, copies)
            self._write_grid(grid)
        self._forget_drafts()
        return [top / name for name in copies]

    def _forget_drafts(self) -> None:
        folder = _inside(self.path, DRAFTS)
        with atomic.storage_errors(folder):
            _inside(self.path, STAGES).unlink(missing_ok=True)
            for path in _entries(self.path, DRAFTS):
                path.unlink()
            if folder.is_dir():
                folder.rmdir()

    def _sort_manifest(self) -> None:
        if list(self.rows) != sorted(self.rows):
            self._replace_rows(dict(sorted(self.rows.items())))

    def _replace_rows(self, rows: dict[int, Row]) -> None:
        lines = b"".join(row.to_line() for row in rows.values())
        atomic.write(_inside(self.path, MANIFEST), lines)
        self.rows, self._end = rows, len(lines)

    def _bytes(self, index: int) -> bytes:
        """An image as it was committed."""
        path = self.image(index)
        with atomic.storage_errors(path):
            png = path.read_bytes()
        if hashlib.sha256(png).hexdigest() != self.rows[index].sha256:
            raise StorageError(f"{path} has changed since it was committed; --resume makes it again")
        return png

    def _write_grid(self, grid: bytes | None) -> None:
        path = _inside(self.path, GRID)
        if grid is None:
            path.unlink(missing_ok=True)
        else:
            atomic.write(path, grid)


def add_scores(path: str | Path, scores: Mapping[str, Mapping[int, float]]) -> RunDir:
    """Add what other scorers say to the rows of a run; its configuration goes on naming those that it was made with.

    Args:
        path: a run folder.
        scores: by the scorer's full name and the candidate's index; one that is not finite is kept as such.

    Returns:
        The run as it is then.

    Raises:
        UsageError: if it is no run folder, or a candidate is not in it.
        FolderBusyError, StorageError: see `RunWriter.start`.
    """
    config = RunDir.read(path).config
    path = Path(path)
    with _locked(path):
        rows, end = _read_rows(path)
        run = RunWriter(path, config, rows)
        run._end = end
        absent = sorted({index for one in scores.values() for index in one} - rows.keys())
        if absent:
            raise UsageError(f"{path} holds no candidate {absent[0]}; it holds {len(rows)} of {run.n}")
        run._replace_rows({index: _scored(row, scores) for index, row in rows.items()})
    return RunDir(path, config, run.rows)


def _scored(row: Row, scores: Mapping[str, Mapping[int, float]]) -> Row:
    new = {name: float(one[row.index]) for name, one in scores.items() if row.index in one}
    finite = {name: score if math.isfinite(score) else None for name, score in new.items()}
    return replace(row, scores={**row.scores, **finite})


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the operating system lets go of it when the process dies."""
    lock = FileLock(folder / LOCK)
    try:
        with atomic.storage_errors(folder / LOCK):
            _acquire(lock, folder)
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path) -> None:
    try:
        lock.acquire(blocking=False)
    except Timeout:  # an OSError too, but not one of storage
        busy = FolderBusyError(
            f"{folder}: another process is writing this run there; wait for it, or choose another folder with --out"
        )
        raise busy from None


def _read_config(path: Path) -> dict[str, Any] | None:
    """The configuration of a run folder; None where there is no folder or an empty one."""
    with atomic.storage_errors(path):
        if not path.exists():
            return None
        if not path.is_dir():
            raise StorageError(f"{path} is a file, a folder was expected; choose another one")
        names = {entry.name for entry in path.iterdir()}
        if CONFIG in names:
            config = _inside(path, CONFIG)
            return parse_config(config.read_bytes(), str(config))
    if names - _BEFORE_CONFIG:
        raise UsageError(f"{path} is not a run folder: there is no {CONFIG} in it, and it is not empty")
    return None


def _read_rows(path: Path) -> tuple[dict[int, Row], int]:
    """The committed rows and the length of their text; none where the run was killed before the first."""
    manifest = _inside(path, MANIFEST)
    return parse_rows(_bytes_of(manifest), str(manifest))


def _bytes_of(path: Path) -> bytes:
    """What is in a file; nothing where there is none."""
    with atomic.storage_errors(path):
        return path.read_bytes() if path.is_file() else b""


def _draft_name(index: int) -> str:
    return f"{index:05d}.png"


def _check_same_run(path: Path, asked: dict[str, Any]) -> None:
    """Raise UsageError, naming up to three differences, if the folder holds another run than the one asked for."""
    held = _read_config(path)
    if held is None or held == asked:
        return
    absent = object()
    different = sorted(key for key in {*held, *asked} if held.get(key, absent) != asked.get(key, absent))
    shown = "; ".join(f"{key} is {_shown(held, key)}, not {_shown(asked, key)}" for key in different[:3])
    more = f" and {len(different) - 3} more" if len(different) > 3 else ""
    raise UsageError(f"{path} holds another run: {shown}{more}; choose another folder with --out")


def _shown(config: dict[str, Any], key: str) -> str:
    if key not in config:
        return "not set"
    text = json.dumps(config[key])
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_space(path: Path, needed: int) -> None:
    with atomic.storage_errors(path):
        free = shutil.disk_usage(path).free
    if free < needed:
        raise StorageError(
            f"{path}: the images need about {_megabytes(needed)}, {_megabytes(free)} are free; "
            "free some space there, or choose another folder with --out"
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _inside(folder: Path, name: str) -> Path:
    """`folder / name`, after following links to see that it is in the folder."""
    path = folder / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise StorageError(f"{path} leads out of the run folder; remove the link and restore the file")
    return path


def _entries(folder: Path, name: str = ".") -> list[Path]:
    inner = _inside(folder, name)
    with atomic.storage_errors(inner):
        return sorted(inner.iterdir()) if inner.is_dir() else []


def _leftovers(folder: Path) -> list[Path]:
    """Temporary files of writes that never ended."""
    entries = [path for name in (".", IMAGES, TOP, DRAFTS) for path in _entries(folder, name)]
    return [path for path in entries if path.name.endswith(atomic.TEMPORARY_SUFFIX)]


def _remove_stale(top: Path, names: Iterable[str]) -> None:
    for path in _entries(top):
        if _TOP_NAME.fullmatch(path.name) and path.name not in names:
            path.unlink()
