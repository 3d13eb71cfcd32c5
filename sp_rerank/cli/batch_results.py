"""The commands under `batch` for what is made: other scorers, exports, agreement, the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sp_rerank.cli.console import Device, load_scorer, progress_bar, quiet, tell

Place = Annotated[str, typer.Argument(metavar="BATCH", help="Folder or URL of a batch.")]


def score(
    place: Place,
    scorer: Annotated[list[str], typer.Option(help="A name of `sp-rerank scorers`, or sp@FOLDER; repeatable.")],
    device: Device = "auto",
) -> None:
    """Add the scores of other scorers to a batch, for the images that it keeps."""
    from sp_rerank.batch.ledger import Ledger
    from sp_rerank.batch.second_pass import score_batch
    from sp_rerank.diffusion import loading

    ledger = Ledger(place)
    ledger.check()
    total = len(ledger.keys("units"))
    for spec in scorer:
        with quiet():
            loaded = load_scorer(spec, None, loading.find_device(device))
            with progress_bar(total, "prompts") as progress:
                done = score_batch(ledger, loaded, progress)
        tell(f"{loaded.name}: {done} prompts scored")


def export(
    place: Place,
    to: Annotated[
        str,
        typer.Option(
            help="hf (parquet with images), imagefolder, webdataset, geneval, pairs (Pick-a-Pic's), or table."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make.")],
    top_k: Annotated[
        int | None, typer.Option(help="The best of each prompt. [default: all that were kept]", min=1)
    ] = None,
    min_gap: Annotated[float, typer.Option(help="Of a pair: how much more the better one scores at least.")] = 0.0,
) -> None:
    """Write a batch in a layout that others read."""
    from sp_rerank.batch.exports import Selection
    from sp_rerank.batch.exports import export as export_batch
    from sp_rerank.batch.ledger import Ledger

    count = export_batch(Ledger(place), out, to, Selection(top_k, min_gap))
    tell(f"{out}: {count} rows")
