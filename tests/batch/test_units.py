"""A unit is a parquet object: its key follows from the id, its bytes from what was made, its images from `keep`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import datasets
import duckdb
import pyarrow.parquet
import pytest
from support.batch_worlds import Darkness, PoisonedPipe, poisoned, poisoned_by_two
from support.doubles import SeededPipe

from sp_rerank.batch.ledger import Ledger
from sp_rerank.batch.order import Models, Order
from sp_rerank.batch.packs import Pack
from sp_rerank.batch.prompts import PromptRow
from sp_rerank.batch.units import decode, key_of
from sp_rerank.batch.worker import UnitMaker
from sp_rerank.errors import StorageError, UsageError
from sp_rerank.generate import generate
from sp_rerank.run.folder import RunDir
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.scorers.ensemble import MeanRank
from sp_rerank.storage.images import read_image

OPTIONS = {"n": 10, "top_k": 3, "batch_size": 4, "steps": 2, "guidance_scale": 1.0}


def maker(folder: Path, *, options=None, **order) -> UnitMaker:
    return UnitMaker(Order(str(folder), Models.of(poisoned), {**OPTIONS, **(options or {})}, **order))


def unit_of(folder: Path, row_id="1"):
    data = (folder / key_of(row_id)).read_bytes()
    return decode(data, row_id)


def test_a_unit_holds_what_generate_makes(tmp_path):
    (outcome,) = maker(tmp_path).make(Pack.of(PromptRow("1", "a cat")))
    expected = generate("a cat", pipe=SeededPipe(), scorer=BrightnessScorer(), **OPTIONS)
    unit = unit_of(tmp_path)
    assert (outcome.status, outcome.made, outcome.first) == ("ok", 10, True)
    assert outcome.best and (outcome.best.seed, outcome.best.score) == (expected[0].seed, expected[0].score)
    assert [(c["seed"], c["score"]) for c in unit.kept] == [(r.seed, r.score) for r in expected]
    images = [read_image(lambda data=c["image"]: io.BytesIO(data), "x") for c in unit.kept]
    assert [image.tobytes() for image in images] == [r.image.tobytes() for r in expected]
    assert [c["rank"] for c in unit.kept] == [1, 2, 3]
    assert sorted(unit.candidates) == list(range(10))


def test_what_a_row_says_goes_before(tmp_path):
    row = PromptRow("1", "a cat", seed=50, n=5, steps=3, negative_prompt="")
    assert [outcome.made for outcome in maker(tmp_path).make(Pack.of(row))] == [5]
    unit = unit_of(tmp_path)
    assert [c["seed"] for c in unit.candidates.values()] == [50, 51, 52, 53, 54]
    assert (unit.config.steps, {c["nfe"] for c in unit.candidates.values()}) == (3, {3})


@pytest.mark.parametrize(("keep", "count"), [("top", 3), ("all", 10), ("none", 0)])
def test_whose_images_are_kept(tmp_path, keep, count):
    maker(tmp_path, keep=keep).make(Pack.of(PromptRow("1", "a cat")))
    unit = unit_of(tmp_path)
    assert len(unit.kept) == count
    assert len({c["sha256"] for c in unit.candidates.values()}) == 10
    assert len(unit.best) == 3


@pytest.mark.parametrize(("form", "exact"), [("png", True), ("webp", True), ("jpeg", False)])
def test_image_formats(tmp_path, form, exact):
    maker(tmp_path, image_format=form).make(Pack.of(PromptRow("1", "a cat")))
    data = unit_of(tmp_path).kept[0]["image"]
    image = read_image(lambda: io.BytesIO(data), "x")
    expected = generate("a cat", pipe=SeededPipe(), scorer=BrightnessScorer(), **OPTIONS)[0].image
    assert image.size == (8, 8)
    assert (image.tobytes() == expected.tobytes()) is exact


def test_whole_run_folders(tmp_path):
    maker(tmp_path, keep="run").make(Pack.of(PromptRow("A cat!", "a cat")))
    (folder,) = (tmp_path / "runs").iterdir()
    run = RunDir.read(folder)
    assert run.verify() == [] and len(run.rows) == 10 and (folder / "index.html").exists()
    unit = unit_of(tmp_path, "A cat!")
    assert unit.kept == []
    assert [c["score"] for c in unit.candidates.values()] == [run.score(index) for index in range(10)]


def test_equal_units_are_equal_bytes_and_the_first_stays(tmp_path):
    (first,) = maker(tmp_path / "a").make(Pack.of(PromptRow("1", "a cat")))
    (second,) = maker(tmp_path / "b").make(Pack.of(PromptRow("1", "a cat")))
    assert first == second
    assert (tmp_path / "a" / key_of("1")).read_bytes() == (tmp_path / "b" / key_of("1")).read_bytes()
    (again,) = maker(tmp_path / "a").make(Pack.of(PromptRow("1", "another cat")))
    assert (again.status, again.first) == ("ok", False)
    assert unit_of(tmp_path / "a").row.prompt == "a cat"


def test_several_scorers_as_one(tmp_path):
    made = UnitMaker(Order(str(tmp_path), Models.of(poisoned_by_two), OPTIONS))
    made.make(Pack.of(PromptRow("1", "a cat")))
    scorer = MeanRank([BrightnessScorer(), Darkness()])
    expected = generate("a cat", pipe=SeededPipe(), scorer=scorer, **OPTIONS)
    unit = unit_of(tmp_path)
    assert [(c["seed"], c["score"]) for c in unit.kept] == [(r.seed, r.score) for r in expected]
    assert all(c["brightness"] == pytest.approx(-c["darkness"]) for c in unit.candidates.values())


def test_a_unit_without_a_usable_image_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(PoisonedPipe, "__init__", lambda self: SeededPipe.__init__(self, flagged=range(10)))
    (outcome,) = maker(tmp_path).make(Pack.of(PromptRow("1", "a cat")))
    assert (outcome.status, outcome.made, outcome.best) == ("unusable", 10, None)
    assert {c["status"] for c in unit_of(tmp_path).candidates.values()} == {"flagged"}


def test_keys():
    assert key_of("cat-1").endswith("/cat-1.parquet")
    ids = ["A", "a", "../../x", "a/b", "a" * 101, "", "\u202e", "id.x", "CON", ".hidden", "a b"]
    keys = {key_of(row_id) for row_id in ids}
    assert len({key.lower() for key in keys}) == len(ids)  # on a disk that does not tell A from a, too
    assert all(Path(key).parts[0] == "units" and len(Path(key).parts) == 3 for key in keys)


@pytest.mark.parametrize(
    ("options", "order", "said"),
    [
        ({"n": 20}, {}, "n is 10, not 20"),
        ({"steps": 3}, {}, "steps is 2, not 3"),
        ({"top_k": 2}, {}, "top_k is 3, not 2"),
        ({}, {"keep": "all"}, "keep is top, not all"),
        ({}, {"image_format": "jpeg"}, "image_format is png, not jpeg"),
    ],
)
def test_another_batch_in_the_place_is_refused(tmp_path, options, order, said):
    maker(tmp_path)
    with pytest.raises(UsageError, match=said):
        maker(tmp_path, options=options, **order)


def test_a_worker_that_would_make_other_pixels_refuses_to_start(tmp_path, monkeypatch):
    maker(tmp_path)
    monkeypatch.setenv("SP_RERANK_TEST_DTYPE", "float16")
    with pytest.raises(UsageError, match="dtype is 'float32', not 'float16'"):
        maker(tmp_path)
    monkeypatch.delenv("SP_RERANK_TEST_DTYPE")
    monkeypatch.setattr("sp_rerank.search.resolve.version", lambda name: "0.0.1")
    with pytest.raises(UsageError, match="versions is"):
        maker(tmp_path)


def test_the_memory_limit_found_once_is_kept(tmp_path, monkeypatch):
    calls = []

    def spoil(seeds, images):
        calls.append(len(seeds))
        if len(seeds) > 2:
            raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(PoisonedPipe, "__init__", lambda self: SeededPipe.__init__(self, spoil))
    made = maker(tmp_path)
    made.make(Pack.of(PromptRow("1", "a cat")))
    first = len(calls)
    made.make(Pack.of(PromptRow("2", "a dog")))
    assert calls[0] == 4
    assert max(calls[first:]) == 2
    assert {c["batch_size"] for c in unit_of(tmp_path, "2").candidates.values()} <= {1, 2}


def test_the_columns_are_read_by_others(tmp_path):
    made = maker(tmp_path)
    for number, prompt in enumerate(["a cat", "a dog"]):
        made.make(Pack.of(PromptRow(str(number), prompt, source=json.dumps({"prompt": prompt, "kind": "x"}))))
    glob = str(tmp_path / "units/*/*.parquet")
    found = duckdb.sql(
        f"select prompt_id, max(score), arg_max(seed, score) from '{glob}' group by 1 order by 1"
    ).fetchall()
    assert [row[0] for row in found] == ["0", "1"]
    assert [row[2] for row in found] == [unit_of(tmp_path, str(i)).kept[0]["seed"] for i in range(2)]
    table = datasets.load_dataset("parquet", data_files=glob, split="train", cache_dir=str(tmp_path / "cache"))
    image = next(row["image"] for row in table if row["image"])
    assert image.size == (8, 8)


def test_images_are_in_small_row_groups_behind_the_scores(tmp_path):
    maker(tmp_path, keep="all", options={"n": 40}).make(Pack.of(PromptRow("1", "a cat")))
    file = pyarrow.parquet.ParquetFile(tmp_path / key_of("1"))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [16, 16, 8]
    assert file.schema_arrow.names[-1] == "image"
    assert file.metadata.row_group(0).column(file.metadata.num_columns - 2).compression == "UNCOMPRESSED"


def test_a_damaged_unit_is_named(tmp_path):
    with pytest.raises(StorageError, match="x is no unit of a batch"):
        decode(b"PAR1", "x")


def test_a_damaged_batch_is_named(tmp_path):
    (tmp_path / "batch.json").write_text("{")
    with pytest.raises(StorageError, match="damaged"):
        maker(tmp_path)
    (tmp_path / "batch.json").write_text('{"schema": 99}')
    with pytest.raises(UsageError, match="newer sp-rerank"):
        maker(tmp_path)


def test_a_full_disk_is_not_the_prompts_fault(tmp_path, monkeypatch):
    made = maker(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    (outcome,) = made.make(Pack.of(PromptRow("1", "a cat")))
    assert outcome.status == "storage"
    assert "free some space" in outcome.error
    assert Ledger(tmp_path).keys("units") == {}


@pytest.mark.parametrize(("prompt", "status"), [("raise", "failed"), ("lose", "again")])
def test_what_goes_wrong_is_the_outcome(tmp_path, prompt, status):
    (outcome,) = maker(tmp_path).make(Pack.of(PromptRow("1", prompt)))
    assert outcome.status == status
    assert len(outcome.error.splitlines()) == 1
