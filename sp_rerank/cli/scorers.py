"""The commands `scorers` and `scorers convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sp_rerank.cli.console import Json, complete_scorer, print_json, quiet, tell


def list_scorers(context: typer.Context, as_json: Json = False) -> None:
    """List the scorers: name, size, scale of the score, license, whether the weights are here."""
    if context.invoked_subcommand:
        return
    from sp_rerank.scorers import available_scorers

    rows = [
        {
            "name": entry.name,
            "size": entry.size,
            "scale": entry.scale,
            "license": entry.license,
            "here": entry.available(),
            "about": entry.summary,
        }
        for entry in available_scorers()
    ]
    if as_json:
        print_json(rows)
        return
    lines = [[*rows[0]], *([{True: "yes", False: "no"}.get(cell, cell) for cell in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        tell("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def convert(
    file: Annotated[Path, typer.Argument(help="the checkpoint as published: .pt, .bin, .pth or .safetensors")],
    as_name: Annotated[
        str,
        typer.Option("--as", help="which one it is, a name from `sp-rerank scorers`", autocompletion=complete_scorer),
    ],
    out: Annotated[Path | None, typer.Option(help="folder to write  [default: in the cache, found by name]")] = None,
) -> None:
    """Turn a published checkpoint into a scorer's folder of safetensors, once."""
    with quiet():
        from sp_rerank.scorers.convert import checkpoint_name
        from sp_rerank.scorers.convert import convert as convert_file

        folder = convert_file(file, as_name, out=out)
    tell(f"{checkpoint_name(folder)}  {folder}")
