"""The command `gallery`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sp_rerank.cli.console import complete_run, say, tell
from sp_rerank.errors import OptionError


def gallery(
    folder: Annotated[
        Path, typer.Argument(help="a run folder, or a folder of run folders", autocompletion=complete_run)
    ],
    one_file: Annotated[
        Path | None, typer.Option(help="HTML file to give away: a run's page that holds its images itself")
    ] = None,
) -> None:
    """Make index.html, the page to look at a run, or at each scorer's best of several runs."""
    from sp_rerank.report.gallery import gallery as page_of
    from sp_rerank.report.gallery import write_gallery
    from sp_rerank.report.overview import write_overview
    from sp_rerank.run.folder import RunDir
    from sp_rerank.run.layout import CONFIG
    from sp_rerank.storage import atomic

    if one_file:
        if one_file.suffix.lower() not in (".html", ".htm"):
            raise OptionError("one_file", str(one_file), "a name that ends in .html")
        atomic.write(one_file, page_of(RunDir.read(folder), embedded=True))
        tell(f"{one_file}, {one_file.stat().st_size / 1e6:.1f} MB")
        return
    if (folder / CONFIG).exists():
        path = write_gallery(RunDir.read(folder))
    else:
        path, errors = write_overview(folder)
        for error in errors.values():
            say(f"not shown: {error}")
    tell(str(path))
