"""Lists of prompts as they lie about: the real files, the layouts of benchmarks, and what is wrong with a list."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from sp_rerank.batch.prompts import read_prompts, rows_of
from sp_rerank.errors import UsageError

REAL = Path(__file__).parents[3] / "shared" / "data"


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(*places):
    return list(read_prompts(*places))


@pytest.mark.parametrize(
    ("file", "count", "distinct"),
    [
        ("drawbench/drawbench.txt", 200, 200),
        ("parti/PartiPrompts.tsv", 1632, 1632),
        ("imagereward/benchmark-prompts.json", 100, 100),
        ("imagereward/test.json", 466, 463),
    ],
)
def test_real_files(file, count, distinct):
    if not (REAL / file).exists():
        pytest.skip(f"{REAL / file} is not here")
    rows = read(REAL / file)
    assert len(rows) == len({row.id for row in rows}) == count
    assert len({row.prompt for row in rows}) == distinct


@pytest.mark.skipif(not REAL.exists(), reason=f"{REAL} is not here")
def test_the_quoted_prompt_of_parti_keeps_its_quotes_and_its_meta():
    rows = read(REAL / "parti" / "PartiPrompts.tsv")
    quoted = [row for row in rows if row.prompt.startswith('"')]
    lines = (REAL / "parti" / "PartiPrompts.tsv").read_text(encoding="utf-8").split("\n")
    assert [row.prompt for row in quoted] == [line.split("\t")[0] for line in lines if line.startswith('"')] != []
    assert rows[0].meta == {
        "Category": "Abstract", "Challenge": "Basic", "Note": "Biology-inspired concepts with multiple meanings",
    }  # fmt: skip


def test_the_layout_of_geneval(tmp_path):
    rows = [
        {"tag": "counting", "include": [{"class": "cow", "count": i}], "exclude": [], "prompt": f"{i} cows"}
        for i in range(553)
    ]
    lines = put(tmp_path / "evaluation_metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    found = read(lines)
    assert len(found) == 553
    assert [json.loads(row.source) for row in found] == rows
    assert [list(json.loads(row.source)) for row in found] == [list(row) for row in rows]  # the order of the keys too
    assert found[4].meta == {key: rows[4][key] for key in ("tag", "include", "exclude")}
    text = put(tmp_path / "generation_prompts.txt", "\n".join(row["prompt"] for row in rows))
    assert [row.prompt for row in read(text)] == [row["prompt"] for row in rows]


def test_the_layout_of_hps(tmp_path):
    styles = ("anime", "concept-art", "paintings", "photo")
    files = [put(tmp_path / f"{style}.json", json.dumps([f"{style} {i}" for i in range(800)])) for style in styles]
    rows = read(*files)
    assert len(rows) == len({row.id for row in rows}) == 3200
    assert (rows[801].id, rows[801].prompt, rows[801].meta) == (
        "concept-art-1",
        "concept-art 1",
        {"file": "concept-art"},
    )


def test_a_line_ends_at_a_line_feed_only(tmp_path):
    text = "a\u2028b\na\x0cb\r\na\x85b\n\n"
    assert [row.prompt for row in read(put(tmp_path / "p.txt", text))] == ["a\u2028b", "a\x0cb", "a\x85b"]
    line = json.dumps({"prompt": "a\u2028b"}, ensure_ascii=False)
    assert [row.prompt for row in read(put(tmp_path / "p.jsonl", line))] == ["a\u2028b"]


def test_csv_quotes_and_tsv_does_not(tmp_path):
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["prompt", "n"], ['"A" and\nB, C', "3"], ["d", ""]])
    rows = read(put(tmp_path / "p.csv", file.getvalue()))
    assert [(row.prompt, row.n) for row in rows] == [('"A" and\nB, C', 3), ("d", None)]
    rows = read(put(tmp_path / "p.tsv", '\ufeffprompt\tn\r\n"A" and B, C\t3\r\nd\r\n'))
    assert [(row.prompt, row.n) for row in rows] == [('"A" and B, C', 3), ("d", None)]


def test_columns_that_mean_something(tmp_path):
    given = {
        "id": 7, "TEXT": "a cat", "seed": 5, "n": 2, "negative_prompt": "", "height": 64, "width": 128, "steps": 4,
        "kind": {"of": ["x"]},
    }  # fmt: skip
    (row,) = read(put(tmp_path / "p.json", json.dumps([given])))
    assert (row.id, row.prompt, row.meta) == ("7", "a cat", {"kind": {"of": ["x"]}})
    assert row.overrides == {"seed": 5, "n": 2, "negative_prompt": "", "height": 64, "width": 128, "steps": 4}


def test_an_object_of_prompts_by_id(tmp_path):
    text = json.dumps({"x": "a cat", "y": {"prompt": "a dog", "n": 3}})
    assert [(row.id, row.prompt, row.n) for row in read(put(tmp_path / "p.json", text))] == [
        ("x", "a cat", None),
        ("y", "a dog", 3),
    ]


def test_parquet(tmp_path):
    columns = {"prompt": ["a", "b"], "n": [2, None], "jpg": [b"x", b"y"], "score": [0.5, 1.0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "p.parquet")
    assert [(row.prompt, row.n, row.meta) for row in read(tmp_path / "p.parquet")] == [
        ("a", 2, {"score": 0.5}),
        ("b", None, {"score": 1.0}),
    ]


@pytest.mark.parametrize("text", ["a cat\na dog\n", '["a cat", "a dog"]', '{"prompt": "a cat"}\n{"prompt": "a dog"}'])
def test_standard_input(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    assert [row.prompt for row in read("-")] == ["a cat", "a dog"]


def test_prompts_in_memory():
    assert [(row.id, row.prompt) for row in rows_of(["a", "b"])] == [("0", "a"), ("1", "b")]
    with pytest.raises(UsageError, match="prompt 1: prompt is ''"):
        list(rows_of(["a", ""]))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.jsonl", '{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}', "line 2: the id '1' is that of row 0 too"),
        ("p.txt", "a\n" * 5000 + "\n" + "b\n" * 4999, "line 5001: prompt is ''"),
        ("p.txt", "a\ncaf\xe9\n".encode("latin-1"), "line 2 is not UTF-8: byte 0xe9 at 5"),
        ("p.csv", "prompt,n\na,0\n", "line 2: n is 0; expected a whole number from 1"),
        ("p.csv", "prompt,n\na,many\n", "line 2: n is 'many'"),
        ("p.csv", 'prompt\n"a\n', "no CSV"),
        ("p.tsv", "prompt\na\tb\n", "2 cells under 1 columns"),
        ("p.json", '[{"words": "a"}]', "row 0: expected a column prompt, .* got words"),
        ("p.json", '[{"prompt": "a", "height": 65}]', "height is 65; expected a multiple of 8"),
        ("p.json", '[{"prompt": "a", "n": true}]', "n is True"),
        ("p.json", '["a", 3]', "row 1: prompt is 3"),
        ("p.json", '["a\\u0000b"]', "prompt is 'a"),
        ("p.json", "3", "expected a list of prompts"),
        ("p.jsonl", "{", "line 1 is no JSON"),
        ("p.txt", "\n\n", "holds no prompt"),
        ("p.docx", "a", "ending in .txt"),
        ("p.parquet", "a", "no parquet file"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, name, content, said):
    with pytest.raises(UsageError, match=said):
        read(put(tmp_path / name, content))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="found none"):
        read(tmp_path / "p.txt")
    (tmp_path / "f.txt").mkdir()
    with pytest.raises(UsageError, match="found a folder"):
        read(tmp_path / "f.txt")


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path):
    assert read(put(tmp_path / "p.txt", "\ufeffa"))[0].prompt == "a"
    assert read(put(tmp_path / "p.csv", "\ufeffprompt\na"))[0].prompt == "a"
