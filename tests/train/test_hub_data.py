"""Data sets in the hub's layout, through `datasets`, offline: a folder of parquet files and one of images."""

from __future__ import annotations

import io

import datasets
import pytest
from PIL import Image

from sp_rerank.errors import HubUnavailableError, UsageError
from sp_rerank.train.readers import read_preferences


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(color: str) -> Image.Image:
    return Image.new("RGB", (12, 8), color)


def put_data_set(folder, split="train", **columns):
    """A folder as `push_to_hub` lays it out: data/SPLIT-00000-of-00001.parquet."""
    values = {
        "prompt": ["a cat", "a cat", "a dog"],
        "chosen": [picture(color) for color in ("red", "green", "blue")],
        "rejected": [picture(color) for color in ("black", "red", "white")],
    } | columns
    features = datasets.Features({
        name: datasets.Image() if isinstance(column[0], Image.Image) else datasets.Value("string")
        for name, column in values.items()
    })
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(values, features=features)
    table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_chosen_and_rejected_of_a_data_set(tmp_path):
    folder = put_data_set(tmp_path / "set")
    cats, dog = read_preferences(f"hub:{folder}")
    assert (cats.prompt, dog.prompt) == ("a cat", "a dog")
    assert [(pair.first, pair.second, pair.label) for pair in dog.pairs] == [(0, 1, 1.0)]
    assert len(cats.images) == 3  # the red one is there once
    assert cats.images[0].open().getpixel((0, 0)) == (255, 0, 0)
    assert [image.open().getpixel((0, 0)) for image in dog.images] == [(0, 0, 255), (255, 255, 255)]


def test_another_split(tmp_path):
    folder = put_data_set(tmp_path / "set")
    put_data_set(folder, "test", prompt=["x"], chosen=[picture("red")], rejected=[picture("blue")])
    assert [group.prompt for group in read_preferences(f"hub:{folder}:test")] == ["x"]
    with pytest.raises(UsageError, match="validation"):
        next(read_preferences(f"hub:{folder}:validation"))


def test_chosen_and_rejected_of_a_file(tmp_path):
    for name in "ab":
        picture("red" if name == "a" else "blue").save(tmp_path / f"{name}.png")
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected\na cat,a.png,b.png\n")
    (group,) = read_preferences(tmp_path / "pairs.csv")
    assert [(group.images[pair.first].path.name, pair.label) for pair in group.pairs] == [("a.png", 1.0)]


def test_columns_that_are_no_layout_are_named(tmp_path):
    folder = put_data_set(tmp_path / "set")
    table = datasets.Dataset.from_dict({"question": ["a"]})
    (folder / "data" / "train-00000-of-00001.parquet").unlink()
    table.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(UsageError, match="has the columns question; expected those of one layout"):
        next(read_preferences(f"hub:{folder}"))


def test_a_damaged_image_is_left_to_the_reader(tmp_path):
    data = io.BytesIO()
    picture("red").save(data, "PNG")
    broken = {"bytes": data.getvalue()[:20], "path": None}
    features = datasets.Features({
        "prompt": datasets.Value("string"), "chosen": datasets.Image(), "rejected": datasets.Image(),
    })  # fmt: skip
    (tmp_path / "set" / "data").mkdir(parents=True)
    datasets.Dataset.from_dict(
        {"prompt": ["x"], "chosen": [broken], "rejected": [picture("blue")]}, features=features
    ).to_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    (group,) = read_preferences(f"hub:{tmp_path / 'set'}")
    assert len(group.images) == 2


def test_the_hub_is_not_there(tmp_path):
    with pytest.raises(HubUnavailableError, match="hub:owner/nothing is not in the cache, and the hub gave no answer"):
        next(read_preferences("hub:owner/nothing"))


@pytest.mark.parametrize("place", ["hub:", "hub::train"])
def test_no_name(place):
    with pytest.raises(UsageError, match="expected hub:OWNER/NAME"):
        next(read_preferences(place))
