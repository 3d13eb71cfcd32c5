"""The command `gallery`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sp_rerank.cli.console import say, tell


def gallery(folder: Annotated[Path, typer.Argument(help="a run folder, or a folder of run folders")]) -> None:
    """Make index.html, the page to look at a run, or at each scorer's best of several runs."""
    from sp_rerank.report.gallery import write_gallery
    from sp_rerank.report.overview import write_overview
    from sp_rerank.run.folder import RunDir
    from sp_rerank.run.layout import CONFIG

    if (folder / CONFIG).exists():
        path = write_gallery(RunDir.read(folder))
    else:
        path, errors = write_overview(folder)
        for error in errors.values():
            say(f"not shown: {error}")
    tell(str(path))
