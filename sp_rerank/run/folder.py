"""A run folder as it stands on the disk, for reading and verifying. Knows files; knows no model or scorer.

What lies where is in `sp_rerank.run.layout`; who writes is `sp_rerank.run.writer`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Self

from filelock import FileLock, Timeout

from sp_rerank.config import RunConfig
from sp_rerank.errors import StorageError, UsageError
from sp_rerank.run.layout import CONFIG, IMAGES, LOCK, MANIFEST, RESULT, bytes_of, entries, inside, leftovers
from sp_rerank.run.records import Row, parse_config, parse_rows
from sp_rerank.run.state import RunState
from sp_rerank.run.summary import RunSummary, parse_summary
from sp_rerank.storage import atomic, images

if TYPE_CHECKING:
    from PIL import Image

_BEFORE_CONFIG = {LOCK, CONFIG + atomic.TEMPORARY_SUFFIX}
"""What a start that was cut short can leave in a folder that has no run.json yet."""

REMEDY = "; resuming the run makes it again"
"""What helps against an image file that is missing or changed."""


class RunDir(RunState):
    """A run folder.

    Attributes:
        path: The folder.
        config: The configuration in run.json.
        rows: The committed candidates by index, in the order of their commits.
    """

    def __init__(self, path: Path, config: RunConfig, rows: dict[int, Row]) -> None:
        super().__init__(config, rows)
        self.path = path

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The run in a folder, also while another process writes to it: no lock is taken and nothing is changed.

        Raises:
            UsageError: If it is not a run folder or one of a newer version, or a key of run.json is not usable.
            StorageError: If it cannot be read or its manifest is damaged.
        """
        path = Path(path)
        found = read_config(path)
        if found is None:
            raise UsageError(f"{path} is not a run folder: there is no {CONFIG} in it")
        rows, _ = read_rows(path)
        return cls(path, found[0], rows)

    @property
    def result(self) -> RunSummary | None:
        """How the run ended; None while it is going on, or was cut short.

        Raises:
            StorageError: If result.json is damaged.
        """
        file = inside(self.path, RESULT)
        text = bytes_of(file)
        return parse_summary(text, str(file)) if text else None

    @property
    def being_written(self) -> bool:
        """Whether a process holds the folder's lock."""
        file = inside(self.path, LOCK)
        if not file.is_file():
            return False
        lock = FileLock(file)
        try:
            lock.acquire(blocking=False)
        except (Timeout, OSError):
            return True
        lock.release()
        return False

    def image(self, index: int) -> Path:
        """Path of a committed candidate's image.

        Raises:
            UsageError: If the candidate is not in the run.
            StorageError: If the path leads out of the folder, through a link.
        """
        self.check_holds([index])
        return inside(self.path, self.rows[index].file)

    def check_holds(self, indices: Iterable[int]) -> None:
        """Check that candidates are in the run.

        Raises:
            UsageError: Naming the first that is not.
        """
        for index in indices:
            if index not in self.rows:
                raise UsageError(f"{self.path} holds no candidate {index}; it holds {len(self.rows)} of {self.n}")

    def image_bytes(self, index: int) -> bytes:
        """A candidate's image file as it was committed.

        Raises:
            UsageError: If the candidate is not in the run.
            StorageError: If the file is missing, was changed since, or cannot be read.
        """
        path = self.image(index)
        if not path.is_file():
            raise StorageError(f"{path}: missing{REMEDY}")
        with atomic.storage_errors(path):
            png = path.read_bytes()
        if atomic.sha256_of(png) != self.rows[index].sha256:
            raise StorageError(f"{path}: changed since it was committed (sha256 differs){REMEDY}")
        return png

    def read_image(self, index: int) -> Image.Image:
        """A candidate's image, RGB, from its file as it was committed.

        Raises:
            UsageError: If the candidate is not in the run.
            StorageError: If the file is missing, was changed since, or is no image.
        """
        png = self.image_bytes(index)
        return images.read_image(lambda: io.BytesIO(png), str(self.path / self.rows[index].file))

    def verify(self) -> list[str]:
        """What is wrong with the folder, one line each; an empty list says that every image is as it was committed.

        An unfinished run can be sound. A run that was killed may show an image without its line, or a temporary file;
        resuming it removes both. While another process writes to the folder such files are its work, and not named.

        Raises:
            StorageError: If images/ or top/ is a link out of the folder.
        """
        problems = [f"candidate {index} is outside 0..{self.n - 1}" for index in self.rows if index >= self.n]
        problems += [problem for index in self.rows if (problem := self.image_problem(index))]
        try:
            self.result  # noqa: B018  # read for its errors
        except StorageError as error:
            problems.append(self._short(str(error)))
        if not self.being_written:
            problems += [f"{self._short(str(path))}: left by an interrupted write" for path in leftovers(self.path)]
            problems += [f"{self._short(str(path))}: not in {MANIFEST}" for path in self.uncommitted()]
        return problems

    def image_problem(self, index: int) -> str | None:
        """What is wrong with a candidate's image file, if anything."""
        try:
            self.image_bytes(index)
        except StorageError as error:
            return self._short(str(error)).removesuffix(REMEDY)
        return None

    def uncommitted(self) -> list[Path]:
        """What is in images/ without a line in the manifest; temporary files aside."""
        committed = {Path(row.file).name for row in self.rows.values()}
        return [
            path
            for path in entries(self.path, IMAGES)
            if path.name not in committed and not path.name.endswith(atomic.TEMPORARY_SUFFIX)
        ]

    def _short(self, message: str) -> str:
        """A message that begins with a path of the folder, from the folder on."""
        return message.removeprefix(f"{self.path}{os.sep}")


def read_config(path: Path) -> tuple[RunConfig, int] | None:
    """The configuration of a run folder and the schema that it was written in; None where there is no folder, or an
    empty one.
    """
    with atomic.storage_errors(path):
        if not path.exists():
            return None
        if not path.is_dir():
            raise StorageError(f"{path} is a file, a folder was expected; choose another one")
        names = {entry.name for entry in path.iterdir()}
        if CONFIG in names:
            config = inside(path, CONFIG)
            return parse_config(config.read_bytes(), str(config))
    if names - _BEFORE_CONFIG:
        raise UsageError(f"{path} is not a run folder: there is no {CONFIG} in it, and it is not empty")
    return None


def read_rows(path: Path) -> tuple[dict[int, Row], int]:
    """The committed rows and the length of their text; none where the run was killed before the first."""
    manifest = inside(path, MANIFEST)
    return parse_rows(bytes_of(manifest), str(manifest))
