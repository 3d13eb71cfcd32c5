"""The commands under `batch` for what is made: other scorers, exports, agreement, the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sp_rerank.cli.console import (
    Device,
    Json,
    PushToHub,
    load_scorer,
    plain,
    print_json,
    progress_bar,
    quiet,
    tell,
)
from sp_rerank.errors import OptionError

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
    push_to_hub: PushToHub = None,
) -> None:
    """Write a batch in a layout that others read."""
    from sp_rerank.batch.exports import Selection
    from sp_rerank.batch.exports import export as export_batch
    from sp_rerank.batch.ledger import Ledger
    from sp_rerank.storage import hub

    if push_to_hub:
        hub.check_push(push_to_hub)
    count = export_batch(Ledger(place), out, to, Selection(top_k, min_gap))
    tell(f"{out}: {count} rows")
    if push_to_hub:
        tell(hub.push_folder(out, push_to_hub, "dataset"))


def compare(
    place: Place,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Do the scorers of a batch agree? Averages within prompts, then over prompts."""
    from sp_rerank.batch.agreement import compare_batch
    from sp_rerank.batch.ledger import Ledger
    from sp_rerank.compare.tables import markdown_of_batch
    from sp_rerank.report.tables import to_json

    found = compare_batch(Ledger(place), seed=seed)
    if as_json:
        print_json({"batch": place, "scorers": found.scorers, "prompts": found.prompts, "pairs": to_json(found.pairs)})
        return
    for line in markdown_of_batch(found).splitlines():
        tell(plain(line))


def overview(
    place: Place,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="HTML file. [default: index.html in the folder of the batch]")
    ] = None,
) -> None:
    """Make the page of a batch: how far it is, whether its scorers agree, the picks of prompts all over the list."""
    from sp_rerank.batch.ledger import Ledger
    from sp_rerank.batch.overview import batch_overview
    from sp_rerank.storage import atomic

    if out is None and "://" in place:
        raise OptionError("out", "not given", "the name of an HTML file here, for a batch that is no folder here")
    if out and out.suffix.lower() not in (".html", ".htm"):
        raise OptionError("out", str(out), "a name that ends in .html")
    target = out or Path(place) / "index.html"
    atomic.write(target, batch_overview(Ledger(place)))
    tell(f"{target}, {target.stat().st_size / 1e6:.1f} MB")
