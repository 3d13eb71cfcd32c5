"""Every export is read by the program that it is for; scores that were added come along."""

from __future__ import annotations

import io
import json
from pathlib import Path

import datasets
import duckdb
import pyarrow.parquet
import pytest
import webdataset
from PIL import Image
from support.batch_worlds import PoisonedPipe, poisoned
from support.doubles import SeededPipe

from sp_rerank.batch import second_pass
from sp_rerank.batch.exports import LAYOUTS, Selection, export
from sp_rerank.batch.ledger import Ledger
from sp_rerank.batch.order import Models, Order
from sp_rerank.batch.packs import Pack
from sp_rerank.batch.prompts import PromptRow
from sp_rerank.batch.second_pass import score_batch
from sp_rerank.batch.worker import UnitMaker
from sp_rerank.errors import NothingUsableError, OptionError, UsageError
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.train.readers import read_preferences

datasets.disable_progress_bars()


class Darkness(BrightnessScorer):
    name = "darkness@1"
    asked = 0

    def score(self, prompt, images):
        Darkness.asked += len(images)
        return -super().score(prompt, images)


def rows() -> list[PromptRow]:
    sources = [{"tag": "counting", "include": [{"class": "cat", "count": i}], "prompt": f"{i} cats"} for i in range(3)]
    return [PromptRow(str(i), source["prompt"], source=json.dumps(source)) for i, source in enumerate(sources)]


def make(folder: Path, **order) -> Ledger:
    maker = UnitMaker(Order(str(folder), Models.of(poisoned), {"n": 6, "top_k": 3, "guidance_scale": 1.0}, **order))
    ledger = Ledger(folder)
    ledger.add_prompts(rows())
    for row in rows():
        assert [outcome.status for outcome in maker.make(Pack.of(row))] == ["ok"]
    return ledger


@pytest.fixture
def ledger(tmp_path):
    return make(tmp_path / "batch")


def loaded(kind: str, folder: Path, cache: Path):
    return datasets.load_dataset(kind, data_dir=str(folder), split="train", cache_dir=str(cache))


def test_a_data_set_of_hugging_face(tmp_path, ledger):
    assert export(ledger, tmp_path / "out", "hf", Selection(top_k=2)) == 6
    table = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(table) == 6
    assert (table[0]["prompt_id"], table[0]["rank"], table[0]["image"].size) == ("0", 1, (8, 8))
    assert table[0]["brightness"] > table[1]["brightness"]
    assert json.loads(table[2]["meta"]) == {"tag": "counting", "include": [{"class": "cat", "count": 1}]}
    assert "| ranked by | brightness |" in (tmp_path / "out" / "README.md").read_text()


def test_an_image_folder(tmp_path, ledger):
    assert export(ledger, tmp_path / "out", "imagefolder", Selection()) == 9
    table = loaded("imagefolder", tmp_path / "out", tmp_path / "cache")
    assert len(table) == 9
    assert {row["prompt"] for row in table} == {"0 cats", "1 cats", "2 cats"}
    assert table[0]["image"].size == (8, 8)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset closes no file
def test_webdataset(tmp_path, ledger):
    assert export(ledger, tmp_path / "out", "webdataset", Selection()) == 9
    samples = list(webdataset.WebDataset(str(tmp_path / "out" / "000000.tar"), shardshuffle=False).decode("pil"))
    assert [sample["json"]["prompt_id"] for sample in samples] == [str(i) for i in range(3) for _ in range(3)]
    assert samples[0]["png"].size == (8, 8)


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_the_layout_of_geneval(tmp_path, image_format):
    """Its evaluator walks the folders of digits and takes metadata.jsonl and samples/*.png (djghosh13/geneval)."""
    ledger = make(tmp_path / "batch", image_format=image_format)
    export(ledger, tmp_path / "out", "geneval", Selection(top_k=2))
    folders = sorted(path for path in (tmp_path / "out").iterdir() if path.is_dir() and path.name.isdigit())
    assert [folder.name for folder in folders] == ["00000", "00001", "00002"]
    for folder, row in zip(folders, rows(), strict=True):
        assert json.loads((folder / "metadata.jsonl").read_text()) == json.loads(row.source)
        samples = sorted((folder / "samples").iterdir())
        assert [path.name for path in samples] == ["00000.png", "00001.png"]
        with Image.open(samples[0]) as image:
            assert (image.format, image.size) == ("PNG", (8, 8))


def test_pairs_are_read_as_pick_a_pic(tmp_path, ledger):
    assert export(ledger, tmp_path / "out", "pairs", Selection()) == 3
    file = next((tmp_path / "out").glob("*.parquet"))
    groups = list(read_preferences(file))
    assert [group.prompt for group in groups] == ["0 cats", "1 cats", "2 cats"]
    table = pyarrow.parquet.read_table(file).to_pylist()
    for row in table:
        better = 0 if row["label_0"] else 1
        assert row[f"score_{better}"] > row[f"score_{1 - better}"]
        assert row["best_image_uid"] == row[f"image_{better}_uid"]
        with Image.open(io.BytesIO(row["jpg_0"])) as image:
            assert image.format == "JPEG"
    assert {row["labeled_by"] for row in table} == {"brightness"}
    assert {row["label_0"] for row in table} == {0.0, 1.0}  # the place tells nothing
    assert "those of a model, not of people" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(NothingUsableError):
        export(ledger, tmp_path / "far", "pairs", Selection(min_gap=1.0))


def test_added_scores_come_along_and_are_added_once(tmp_path, ledger, monkeypatch):
    Darkness.asked = 0
    assert score_batch(ledger, Darkness()) == 3
    assert score_batch(ledger, Darkness()) == 0
    assert Darkness.asked == 9  # the kept ones, once
    export(ledger, tmp_path / "out", "table", Selection())
    query = f"select brightness, \"darkness@1\" d, rank from '{tmp_path / 'out' / 'scores.parquet'}'"
    found = duckdb.sql(query).fetchall()
    assert len(found) == 18
    assert all(dark == pytest.approx(-bright, abs=3e-3) for bright, dark, rank in found if rank)
    assert all(dark is None for _, dark, rank in found if not rank)


def test_a_pass_that_was_cut_short_goes_on(tmp_path, ledger, monkeypatch):
    Darkness.asked = 0
    calls = []

    def stop(done):
        calls.append(done)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_batch(ledger, Darkness(), stop)
    assert score_batch(ledger, Darkness()) == 1
    assert Darkness.asked == 9


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_without_images(tmp_path, layout):
    ledger = make(tmp_path / "batch", keep="none")
    if layout == "table":
        assert export(ledger, tmp_path / "out", layout, Selection()) == 18
        return
    with pytest.raises(NothingUsableError, match="keep=top"):
        export(ledger, tmp_path / "out", layout, Selection())
    assert not (tmp_path / "out").exists()
    with pytest.raises(NothingUsableError, match="keeps no images"):
        score_batch(ledger, Darkness())


def test_a_batch_in_which_nothing_was_usable(tmp_path, monkeypatch):
    monkeypatch.setattr(PoisonedPipe, "__init__", lambda self: SeededPipe.__init__(self, flagged=range(10)))
    maker = UnitMaker(Order(str(tmp_path / "b"), Models.of(poisoned), {"n": 4, "guidance_scale": 1.0}))
    ledger = Ledger(tmp_path / "b")
    ledger.add_prompts(rows())
    assert [maker.make(Pack.of(row))[0].status for row in rows()] == ["unusable"] * 3
    with pytest.raises(NothingUsableError):
        export(ledger, tmp_path / "out", "hf", Selection())
    assert len(list(second_pass.units_of(ledger))) == 3


def test_what_is_refused(tmp_path, ledger):
    with pytest.raises(OptionError, match="to is 'zip'; expected one of hf"):
        export(ledger, tmp_path / "out", "zip", Selection())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UsageError, match="is there already"):
        export(ledger, tmp_path / "out", "hf", Selection())
    with pytest.raises(UsageError, match="holds no batch"):
        export(Ledger(tmp_path / "none"), tmp_path / "out2", "hf", Selection())
