"""Small files of preferences and their images."""

import io
import json

import pyarrow
from PIL import Image
from pyarrow import parquet


def encoded(level=128, mode="RGB", file_format="PNG", **options):
    file = io.BytesIO()
    Image.new("RGB", (12, 8), (level,) * 3).convert(mode).save(file, file_format, **options)
    return file.getvalue()


def put(folder, *names, level=128):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(level))


def put_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def put_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def labels(group):
    return {(pair.first, pair.second): pair.label for pair in group.pairs}
