"""What is settled before a run folder is written: which run it holds or becomes, and whether the disk has room.

A folder goes on with the run that it holds. Asked for more candidates of that run, it becomes the larger one: how many
there are is no part of what an image is. Knows run.json; knows no model.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from sp_rerank.config import RunConfig, StopRules
from sp_rerank.errors import OptionError, StorageError, UsageError
from sp_rerank.run.folder import read_config, read_rows
from sp_rerank.run.layout import RESULT, inside, run_folder_name
from sp_rerank.storage import atomic

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opening:
    """What a folder is opened with.

    Attributes:
        config: Of the run from here on.
        schema: That run.json was written in; None where there is no run.
        held: How many candidates the run in the folder is to have; 0 where there is none.
        grows: Whether the run in the folder is over, and is asked for more than it has.
    """

    config: RunConfig
    schema: int | None
    held: int
    grows: bool


def open_as(path: Path, asked: RunConfig, more: int | None = None) -> Opening:
    """The run that a folder goes on with: a new one, the one that it holds, or that one with more candidates.

    Args:
        path: The folder.
        asked: The run that was asked for.
        more: Number of candidates to add to what the folder holds; `asked.n` then says nothing.

    Raises:
        UsageError: Naming up to three differences, if the folder holds another run than the one asked for.
        OptionError: If it holds more candidates of this run than are asked for, or none to add to.
    """
    found = read_config(path)
    if found is None:
        if more:
            raise OptionError("more", more, f"none: there is no run in {path} to add to")
        return Opening(asked, None, 0, grows=False)
    held, schema = found
    over = _is_over(path, held)
    if more:
        asked = replace(asked, n=held.n + more if over else held.n)
    if held.n < asked.n or (over and held.stop != asked.stop):
        grown = _grown(path, held, asked)
        return Opening(grown, schema, held.n, grows=over)
    _check_same(path, held, asked)
    return Opening(held, schema, held.n, grows=False)


def default_folder(runs: Path, asked: RunConfig, more: int | None = None) -> Path:
    """Where a run goes that has no folder of its own: the first of its names that is new, or can go on with it.

    Args:
        runs: The folder of all runs.
        asked: The run that was asked for.
        more: As for `open_as`.

    Raises:
        OptionError: If there is no run to add to.
    """
    for path in _names(runs / run_folder_name(asked)):
        if not path.exists():
            if more:
                raise OptionError("more", more, f"none: there is no run of this kind in {runs} to add to")
            return path
        try:
            open_as(path, asked, more)
        except UsageError:
            continue
        return path
    raise AssertionError("there are names without end")


def _names(path: Path) -> Iterator[Path]:
    """The name itself, then NAME-2, NAME-3 and so on."""
    yield path
    for number in count(2):
        yield path.with_name(f"{path.name}-{number}")


def _is_over(path: Path, held: RunConfig) -> bool:
    """Whether a run was concluded, or has all of its candidates."""
    return inside(path, RESULT).is_file() or len(read_rows(path)[0]) >= held.n


def _grown(path: Path, held: RunConfig, asked: RunConfig) -> RunConfig:
    """The run in the folder with as many candidates as are asked for, and the rules that are; its batches stay."""
    same = {"stop": StopRules(), "batch_size": held.batch_size}
    _refuse(path, replace(held, **same).of_any_size(), replace(asked, **same).of_any_size())
    if held.batch_size != asked.batch_size and held.batch_size != min(held.n, asked.batch_size):
        log.warning(
            "%s goes on in the batches that it began with, of %d, not of %d", path, held.batch_size, asked.batch_size
        )
    return held.grown_to(asked.n, asked.stop)


def _check_same(path: Path, held: RunConfig, asked: RunConfig) -> None:
    """Refuse another run than the one that the folder holds, however it came to its number of candidates."""
    if held.batch_size and min(held.batch_size, held.n) == min(asked.batch_size, held.n):
        asked = replace(asked, batch_size=held.batch_size)  # larger than the run, it cuts it as that one does
    if held.n > asked.n and held.of_any_size() == asked.of_any_size():
        raise OptionError(
            "n", asked.n, f"at least {held.n}, for {path} holds as many candidates of this run; choose another folder"
        )
    if held.grown:
        held, asked = held.of_any_size(), asked.of_any_size()
    _refuse(path, held, asked)


def _refuse(path: Path, held: RunConfig, asked: RunConfig) -> None:
    different = held.differences(asked)
    if different:
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise UsageError(f"{path} holds another run: {'; '.join(different[:3])}{more}; choose another folder")


def check_space(path: Path, needed: int) -> None:
    """Check that the disk has room for so many bytes.

    Raises:
        StorageError: If it has not.
    """
    with atomic.storage_errors(path):
        free = shutil.disk_usage(path).free
    if free < needed:
        raise StorageError(
            f"{path}: the images need about {_megabytes(needed)}, {_megabytes(free)} are free; "
            "free some space there, or choose another folder"
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
