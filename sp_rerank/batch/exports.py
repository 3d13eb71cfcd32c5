"""A batch in the layouts that others read: data sets, training loaders, benchmarks, preference pairs.

Knows those layouts. The units stay the truth; an export can be made again.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from sp_rerank.batch.arrow import arrow
from sp_rerank.batch.ledger import Ledger
from sp_rerank.batch.second_pass import units_of
from sp_rerank.batch.units import OWN_COLUMNS, StoredUnit, image_type, name_of, with_features
from sp_rerank.errors import NothingUsableError, OptionError, UsageError
from sp_rerank.report.tables import markdown_text
from sp_rerank.storage import atomic
from sp_rerank.storage.images import read_image

SHARD_BYTES = 500_000_000
"""Of a file that holds many images, about."""

OF_A_FOLDER = 1000
"""Prompts of a folder of files."""

ROWS_OF_A_GROUP = 16
"""Of a parquet file with images."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is exported.

    Attributes:
        top_k: The best of each prompt, at most; None takes all whose images were kept.
        min_gap: Of a pair: how much more the better one scores, at least.
    """

    top_k: int | None = None
    min_gap: float = 0.0


def export(ledger: Ledger, target: Path, layout: str, selection: Selection) -> int:
    """Write a batch as a folder in another layout.

    Args:
        ledger: The batch.
        target: The folder; made as a whole. It must not exist, or be empty.
        layout: A name of LAYOUTS.
        selection: What is exported.

    Returns:
        The number of rows: images, pairs, or candidates of a table.

    Raises:
        UsageError: If there is no batch, `target` is not empty, or the layout is not known.
        NothingUsableError: If there is nothing to export.
        StorageError: If something cannot be read or written.
    """
    ledger.check()
    if layout not in LAYOUTS:
        raise OptionError("to", layout, f"one of {', '.join(LAYOUTS)}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there already; choose another folder")
    counted = 0

    def fill(folder: Path) -> None:
        nonlocal counted
        counted = LAYOUTS[layout](folder, units_of(ledger), selection)
        if not counted:
            raise NothingUsableError(
                f"{ledger.place} holds nothing to export as {layout}; images are kept with keep=top"
            )

    target.parent.mkdir(parents=True, exist_ok=True)
    atomic.replace_folder(target, fill)
    return counted


def _chosen(unit: StoredUnit, selection: Selection) -> list[Mapping[str, Any]]:
    """The candidates that are exported, the best first."""
    return unit.kept[: selection.top_k]


def _record(unit: StoredUnit, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a candidate, for JSON."""
    return {
        "prompt_id": unit.row.id,
        "prompt": unit.row.prompt,
        "seed": entry["seed"],
        "rank": entry["rank"],
        **_scores(unit, entry),
        "meta": json.dumps(unit.row.meta, ensure_ascii=False),
    }


def _scores(unit: StoredUnit, entry: Mapping[str, Any]) -> dict[str, float | None]:
    """The scores of a candidate by the full names of the scorers."""
    others = {name: value for name, value in entry.items() if name not in OWN_COLUMNS}
    return {unit.config.scorers[0]: entry["score"], **others}


def _suffix(image: bytes) -> str:
    return "png" if image.startswith(b"\x89PNG") else "jpg" if image.startswith(b"\xff\xd8") else "webp"


def _as(image: bytes, form: str) -> bytes:
    """The same picture in another format; itself where it has that format."""
    if _suffix(image) == {"PNG": "png", "JPEG": "jpg"}[form]:
        return image
    file = io.BytesIO()
    read_image(lambda: io.BytesIO(image), "image").save(file, form, **({"quality": 95} if form == "JPEG" else {}))
    return file.getvalue()


def _to_table(folder: Path, units: Iterator[StoredUnit], selection: Selection) -> int:
    """scores.parquet: every candidate with all its scores, and no image."""
    rows = (
        {
            **_record(unit, entry),
            **{name: entry[name] for name in ("index", "status", "nfe", "sha256")},
        }
        for unit in units
        for entry in unit.candidates.values()
    )
    return _write_parquet(folder, "scores", rows, {}, rows_of_a_group=100_000, shards=False)


def _to_dataset(folder: Path, units: Iterator[StoredUnit], selection: Selection) -> int:
    """data/train-*.parquet with an image column, as `datasets` and the hub's viewer read it, and a card."""
    first = next(units, None)
    if first is None:
        return 0
    (folder / "data").mkdir()
    rows = (
        {**_record(unit, entry), "image": {"bytes": entry["image"], "path": None}}
        for unit in chain([first], units)
        for entry in _chosen(unit, selection)
    )
    (folder / "README.md").write_text(_card(first, "Each row is a kept candidate of a prompt."), encoding="utf-8")
    return _write_parquet(folder / "data", "train", rows, {"image": image_type()}, ROWS_OF_A_GROUP)


def _to_image_folder(folder: Path, units: Iterator[StoredUnit], selection: Selection) -> int:
    """train/part-000000/ID_RANK.png with a metadata.jsonl in each folder, as `datasets` reads an ImageFolder."""
    count = 0
    for number, unit in enumerate(units):
        part = folder / "train" / f"part-{number // OF_A_FOLDER:06d}"
        part.mkdir(parents=True, exist_ok=True)
        with (part / "metadata.jsonl").open("a", encoding="utf-8") as file:
            for place, entry in enumerate(_chosen(unit, selection), 1):
                name = f"{name_of(unit.row.id)}_{place:02d}.{_suffix(entry['image'])}"
                (part / name).write_bytes(entry["image"])
                file.write(json.dumps({"file_name": name, **_record(unit, entry)}, ensure_ascii=False) + "\n")
                count += 1
    return count


def _to_webdataset(folder: Path, units: Iterator[StoredUnit], selection: Selection) -> int:
    """000000.tar, 000001.tar, ...: a sample is KEY.png and KEY.json, as webdataset reads it."""
    count = size = shard = 0
    file: tarfile.TarFile | None = None
    try:
        for unit in units:
            for place, entry in enumerate(_chosen(unit, selection), 1):
                if file is None or size > SHARD_BYTES:
                    if file:
                        file.close()
                    file = tarfile.open(folder / f"{shard:06d}.tar", "w")  # noqa: SIM115  # closed when it is full
                    size, shard = 0, shard + 1
                key = f"{name_of(unit.row.id).replace('.', '-')}_{place:02d}"
                record = json.dumps(_record(unit, entry), ensure_ascii=False).encode()
                for suffix, data in ((_suffix(entry["image"]), entry["image"]), ("json", record)):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(data)
                    file.addfile(member, io.BytesIO(data))
                count, size = count + 1, size + len(entry["image"])
    finally:
        if file:
            file.close()
    return count


def _to_geneval(folder: Path, units: Iterator[StoredUnit], selection: Selection) -> int:
    """00000/metadata.jsonl with the row as it came and 00000/samples/00000.png: what GenEval's evaluator reads."""
    count = 0
    for number, unit in enumerate(units):
        samples = folder / f"{number:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(unit.row.source + "\n", encoding="utf-8")
        for place, entry in enumerate(_chosen(unit, selection)):
            (samples / f"{place:05d}.png").write_bytes(_as(entry["image"], "PNG"))
            count += 1
    return count


def _to_pairs(folder: Path, units: Iterator[StoredUnit], selection: Selection) -> int:
    """pairs-*.parquet in Pick-a-Pic's columns: the best and the worst kept candidate of each prompt.

    The labels are a scorer's, not a person's: the column labeled_by and the card say which.
    """
    first = next(units, None)
    if first is None:
        return 0
    rows = _pairs(chain([first], units), selection)
    about = "Each row is a pair of candidates of a prompt. The labels are those of a model, not of people."
    (folder / "README.md").write_text(_card(first, about), encoding="utf-8")
    return _write_parquet(folder, "pairs", rows, {}, ROWS_OF_A_GROUP)


def _pairs(units: Iterable[StoredUnit], selection: Selection) -> Iterator[dict[str, Any]]:
    for number, unit in enumerate(units):
        scored = [entry for entry in _chosen(unit, selection) if entry["score"] is not None]
        if len(scored) < 2 or scored[0]["score"] - scored[-1]["score"] <= selection.min_gap:
            continue
        better = number % 2  # so that the place of the better one tells nothing
        pair = [scored[-1], scored[-1]]
        pair[better], pair[1 - better] = scored[0], scored[-1]
        uids = [f"{name_of(unit.row.id)}-{entry['seed']}" for entry in pair]
        row: dict[str, Any] = {
            "caption": unit.row.prompt, "ranking_id": number, "are_different": True, "has_label": True,
            "best_image_uid": uids[better], "num_example_per_prompt": 1, "labeled_by": unit.config.scorers[0],
        }  # fmt: skip
        for side, entry in enumerate(pair):
            row |= {
                f"jpg_{side}": _as(entry["image"], "JPEG"), f"label_{side}": float(side == better),
                f"image_{side}_uid": uids[side], f"model_{side}": unit.config.model, f"score_{side}": entry["score"],
            }  # fmt: skip
        yield row


def _write_parquet(
    folder: Path,
    name: str,
    rows: Iterator[dict[str, Any]],
    types: Mapping[str, Any],
    rows_of_a_group: int,
    *,
    shards: bool = True,
) -> int:
    """Rows as NAME-00000.parquet and so on, or NAME.parquet; how many there were."""
    pa, parquet = arrow()
    count = size = shard = 0
    writer: Any = None
    schema: Any = None
    group: list[dict[str, Any]] = []

    def flush() -> None:
        nonlocal writer, shard, size, schema, group
        if not group:
            return
        if schema is None:
            schema = _schema_of(group, types)
        if writer is None:
            file = folder / (f"{name}-{shard:05d}.parquet" if shards else f"{name}.parquet")
            writer, shard, size = (
                parquet.ParquetWriter(file, schema, compression="zstd", use_dictionary=not types),
                shard + 1,
                0,
            )
        table = pa.Table.from_pylist(group, schema)
        writer.write_table(table)
        size, group = size + table.nbytes, []
        if shards and size > SHARD_BYTES:
            writer.close()
            writer = None

    for row in rows:
        group.append(row)
        count += 1
        if len(group) == rows_of_a_group:
            flush()
    flush()
    if writer:
        writer.close()
    return count


def _schema_of(rows: Sequence[Mapping[str, Any]], types: Mapping[str, Any]) -> Any:
    """The columns of rows: a score is a number also where the first rows have none."""
    pa, _ = arrow()
    inferred = pa.Table.from_pylist(rows).schema
    fields = [
        pa.field(field.name, types.get(field.name, pa.float64() if pa.types.is_null(field.type) else field.type))
        for field in inferred
    ]
    return with_features(pa.schema(fields)) if types else pa.schema(fields)


def _card(unit: StoredUnit, about: str) -> str:
    """README.md of a data set: what made it."""
    config = unit.config
    facts = {
        "model": config.model, "revision": config.revision or "-", "steps": config.steps,
        "guidance scale": config.guidance_scale, "scheduler": config.scheduler, "candidates of a prompt": config.n,
        "ranked by": config.scorers[0], "other scores": ", ".join(config.scorers[1:]) or "-",
    }  # fmt: skip
    lines = [f"| {name} | {markdown_text(str(value))} |" for name, value in facts.items()]
    notes = "Scores compare candidates of one prompt only. The license is that of the model that made the images."
    head = [
        "---",
        "license: other",
        "tags: [synthetic, sp-rerank]",
        "---",
        "",
        "# Images made and ranked with sp-rerank",
    ]
    return "\n".join([*head, "", f"{about} {notes}", "", "| | |", "|---|---|", *lines, ""])


LAYOUTS: dict[str, Callable[[Path, Iterator[StoredUnit], Selection], int]] = {
    "hf": _to_dataset,
    "imagefolder": _to_image_folder,
    "webdataset": _to_webdataset,
    "geneval": _to_geneval,
    "pairs": _to_pairs,
    "table": _to_table,
}
