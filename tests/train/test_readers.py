"""Preferences of every layout, written here in small, and what is wrong with them is said."""

import csv
import json
import logging
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from support.preference_files import encoded, labels, put, put_json, put_table

from sp_rerank.errors import UsageError
from sp_rerank.train.preferences import (
    split_groups,
)
from sp_rerank.train.readers import read_preferences

REAL = Path(__file__).parents[3] / "shared" / "data" / "imagereward" / "test.json"


PAIR = {"prompt": "x", "first": "a.png", "second": "b.png", "label": 1}


# The layouts


def test_image_reward(tmp_path):
    put(tmp_path, "part-1/a.png", "part-1/b.png", "part-1/c.png")
    entry = {"id": "1", "prompt": "a cat", "generations": ["part-1/a.png", "part-1/b.png", "part-1/c.png"]}
    (group,) = read_preferences(put_json(tmp_path / "test.json", [{**entry, "ranking": [2, 1, 2]}]))
    assert (group.prompt, group.ranks, group.annotations) == ("a cat", (2.0, 1.0, 2.0), ())
    assert labels(group) == {(0, 1): 0, (0, 2): 0.5, (1, 2): 1}
    assert group.images[1].name == str(tmp_path / "part-1/b.png")
    assert group.images[1].open().size == (12, 8)


@pytest.mark.skipif(not REAL.exists(), reason=f"{REAL} is not here")
def test_the_real_image_reward_file_has_its_counts(tmp_path):
    for entry in json.loads(REAL.read_text()):
        for name in entry["generations"]:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
    groups = list(read_preferences(REAL, tmp_path))
    ties = Counter(pair.label == 0.5 for group in groups for pair in group.pairs)
    assert len(groups) == 466
    assert len({group.prompt for group in groups}) == 463
    assert len({image for group in groups for image in group.images}) == 2720
    assert (ties[False], ties[True]) == (6399, 831)
    assert {len(group.images) for group in groups} == set(range(4, 10))
    parts = split_groups(groups, (0.8, 0.1, 0.1), seed=0)
    assert [len(part) for part in parts] == pytest.approx([373, 47, 47], abs=20)
    assert sum(len({group.prompt for group in part}) for part in parts) == 463


@pytest.mark.parametrize("prefix", ["", "train_1/", "images/train/train_1/"])
def test_image_reward_db_from_its_zips(tmp_path, prefix):
    archive = tmp_path / "images" / "train" / "train_1.zip"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as zipped:
        for level in (10, 20, 30):
            zipped.writestr(f"{prefix}{level}.png", encoded(level))
    rows = [
        {"image_path": f"images/train/train_1/{level}.png", "prompt_id": text, "prompt": f"prompt {text}", "rank": rank}
        for level, text, rank in [(10, "x", 2), (20, "y", 1), (30, "x", 1), (10, "y", 2)]
    ]
    put_table(tmp_path / "metadata-train.parquet", [{**row, "classification": "People"} for row in rows])
    first, second = read_preferences(tmp_path)
    assert first.prompt == "prompt x"
    assert labels(first) == {(0, 1): 0}
    assert [image.open().getpixel((0, 0))[0] for image in (*first.images, *second.images)] == [10, 30, 20, 10]
    assert first.images[0] == second.images[1]


def test_hpd_train_and_its_folder(tmp_path):
    put(tmp_path, "train/1.jpg", "train/2.jpg")
    entry = {"prompt": "a dog", "file_path": ["1.jpg", "2.jpg"]}
    file = put_json(tmp_path / "train.json", [{**entry, "human_preference": votes} for votes in ([1, 0], [0, 1])])
    assert [labels(group) for group in read_preferences(file)] == [{(0, 1): 1}, {(0, 1): 0}]


def test_hpd_test_with_its_annotators(tmp_path):
    put(tmp_path, "1.jpg", "2.jpg")
    raw = [{"rank": [1, 2], "user_hash": "x"}, {"rank": [2, 1], "user_hash": "y"}]
    entry = {"prompt": "a dog", "image_path": ["1.jpg", "2.jpg"], "rank": [1, 2], "raw_annotations": raw}
    (group,) = read_preferences(put_json(tmp_path / "test.json", [entry]))
    assert (group.ranks, group.annotations) == ((1.0, 2.0), ((1.0, 2.0), (2.0, 1.0)))


def pick(label, level=50, **more):
    pair = {"caption": "a pick", "jpg_0": encoded(level, file_format="JPEG"), "jpg_1": encoded(file_format="JPEG")}
    return {**pair, "label_0": label, "label_1": None if label is None else 1 - label, "has_label": True, **more}


def test_pick_a_pic_in_shards(tmp_path):
    put_table(tmp_path / "a-0.parquet", [pick(1.0), pick(0.5), pick(None, has_label=False)])
    put_table(tmp_path / "a-1.parquet", [pick(0.0, level=70)])
    groups = list(read_preferences(tmp_path))
    assert [labels(group)[0, 1] for group in groups] == [1, 0.5, 0]
    assert groups[2].images[0].open().getpixel((0, 0)) == (70, 70, 70)
    assert len({image for group in groups for image in group.images}) == 6
    assert groups[1].images[0].name == f"{tmp_path / 'a-0.parquet'}: row 2 jpg_0"


def own(tmp_path, rows, name="pairs.jsonl"):
    put(tmp_path, "a.png", "b.png", "c.png")
    file = tmp_path / name
    if file.suffix == ".csv":
        with file.open("w", newline="") as text:
            writer = csv.DictWriter(text, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl"])
def test_own_pairs_of_a_prompt_are_one_group(tmp_path, name):
    rows = [
        {"prompt": 'two "lemons",\u2028one line', "first": "a.png", "second": "b.png", "label": 1},
        {"prompt": "another", "first": "a.png", "second": "b.png", "label": 0},
        {"prompt": 'two "lemons",\u2028one line', "first": "c.png", "second": "a.png", "label": 0.5},
    ]
    first, second = read_preferences(own(tmp_path, rows, name))
    assert first.prompt == rows[0]["prompt"]
    assert [image.path.name for image in first.images] == ["a.png", "c.png", "b.png"]
    assert labels(first) == {(0, 2): 1, (1, 0): 0.5}
    assert labels(second) == {(0, 1): 0}


def test_own_winners_need_no_label(tmp_path):
    (group,) = read_preferences(own(tmp_path, [{"prompt": "x", "better": "b.png", "worse": "a.png"}]))
    assert [image.path.name for image in group.images] == ["b.png", "a.png"]
    assert labels(group) == {(0, 1): 1}


def test_further_columns_of_ones_own_are_carried(tmp_path):
    answers = {"annotator": "me", "both_bad": False, "answered_ms": 812, "repeat": 3, "time": "12:00"}
    first, second = PAIR | answers, PAIR | answers | {"second": "c.png", "label": 0, "annotator": "you"}
    (group,) = read_preferences(own(tmp_path, [first, second]))
    assert group.pairs[0].extra == answers
    assert group.pairs[1].extra["annotator"] == "you"
    (read,) = read_preferences(own(tmp_path, [first, second], "pairs.csv"))
    assert read.pairs[1].extra == {name: str(value) for name, value in (answers | {"annotator": "you"}).items()}
    assert labels(read) == labels(group)


def test_entries_without_an_answer_are_left_out_and_counted(tmp_path, caplog):
    skipped = {**PAIR, "second": "c.png", "label": None, "both_bad": True}
    rows = [{**PAIR, "both_bad": False}, skipped, {**PAIR, "first": "c.png", "label": 0, "both_bad": False}]
    for name in ("pairs.jsonl", "pairs.csv"):
        caplog.clear()
        (group,) = read_preferences(own(tmp_path, rows, name))
        assert [pair.label for pair in group.pairs] == [1, 0]
        assert "1 entries without a label left out" in caplog.text


def test_a_row_longer_than_its_head_is_refused(tmp_path):
    file = own(tmp_path, [PAIR], "pairs.csv")
    file.write_text(file.read_text() + "x,a.png,c.png,0,12:00\n")
    with pytest.raises(UsageError, match="a row of more cells than columns"):
        list(read_preferences(file))


@pytest.mark.parametrize("name", ["UP.CSV", "Up.JsonL"])
def test_the_case_of_a_suffix_does_not_matter(tmp_path, name):
    rows = [PAIR, {**PAIR, "second": "c.png", "label": 0}]
    (group,) = read_preferences(own(tmp_path, rows, name.lower()))
    (tmp_path / name.lower()).rename(tmp_path / name)
    assert list(read_preferences(tmp_path / name)) == [group]
    assert list(read_preferences(tmp_path)) == [group]


def test_parquet_whose_suffix_is_written_large(tmp_path):
    put_table(tmp_path / "A.PARQUET", [pick(1.0), pick(0.0)])
    put_table(tmp_path / "B.Parquet", [pick(0.0)])
    assert len(list(read_preferences(tmp_path))) == 3


def as_struct(data, path=None):
    """An image as `datasets` and pandas write it."""
    return {"bytes": data, "path": path}


def test_images_in_cells_with_their_names(tmp_path):
    rows = [{**pick(label), "jpg_0": as_struct(encoded(level), "x.png")} for label, level in [(1.0, 50), (0.0, 70)]]
    rows = [{**row, "jpg_1": as_struct(row["jpg_1"])} for row in rows]
    put_table(tmp_path / "a.parquet", rows)
    first, second = read_preferences(tmp_path)
    assert first.images[0].open().getpixel((0, 0)) == (50, 50, 50)
    assert second.images[0].open().getpixel((0, 0)) == (70, 70, 70)


def test_own_pairs_with_their_images_in_the_table(tmp_path):
    """The same picture in several rows is one image of the group; a cell with a path alone names a file."""
    a, b = as_struct(encoded(10), "a.png"), as_struct(encoded(20), "b.png")
    put(tmp_path, "c.png", level=30)
    c = as_struct(None, "c.png")
    rows = [
        {"prompt": "x", "first": left, "second": right, "label": y} for left, right, y in [(a, b, 1.0), (c, a, 0.0)]
    ]
    put_table(tmp_path / "own.parquet", rows)
    (group,) = read_preferences(tmp_path)
    assert [image.open().getpixel((0, 0))[0] for image in group.images] == [10, 30, 20]
    assert labels(group) == {(0, 2): 1, (1, 0): 0}


def test_a_ranking_with_its_images_in_the_table(tmp_path):
    cells = [as_struct(encoded(level)) for level in (10, 20, 30)]
    put_table(tmp_path / "own.parquet", [{"prompt": "x", "generations": cells, "ranking": [2, 1, 3]}])
    (group,) = read_preferences(tmp_path)
    assert [image.open().getpixel((0, 0))[0] for image in group.images] == [10, 20, 30]
    assert len(set(group.images)) == 3


@pytest.mark.parametrize("cell", [{"bytes": None, "path": None}, None, 7, ""])
def test_a_cell_that_is_no_image_is_named(tmp_path, cell):
    rows = [{"prompt": "x", "first": "a.png", "second": cell, "label": 1}]
    with pytest.raises(UsageError, match=r"group 1 .* an image file or its path was expected in row 1 second"):
        list(read_preferences(own(tmp_path, rows)))


def test_images_in_another_folder(tmp_path):
    put(tmp_path / "elsewhere", "a.png", "b.png")
    data = put_json(tmp_path / "x.json", [{"prompt": "x", "generations": ["a.png", "b.png"], "ranking": [1, 2]}])
    (group,) = read_preferences(data, tmp_path / "elsewhere")
    assert group.images[0].path.parent.name == "elsewhere"
    with pytest.raises(UsageError, match="is not a folder"):
        read_preferences(data, tmp_path / "nowhere")


# What is wrong


def ranked(*ranking, names=("a.png", "b.png", "c.png")):
    return {"prompt": "x", "generations": list(names[: len(ranking)]), "ranking": list(ranking)}


BAD_JSON = {
    "ties": ([ranked(1, 1), ranked(2, 2, 2)], "holds 4 ties and no pair with a better image"),
    "alone": ([ranked(1)], "no pair"),
    "missing": ([ranked(1, 2, names=("a.png", "gone.png"))], "the image gone.png is not in"),
    "short": ([{**ranked(1, 2), "ranking": [1]}], "group 1 is not as expected: a rank for each of 2 images"),
    "no number": ([ranked(1, 2), ranked(1, None)], "group 2 is not as expected"),
    "no text": ([{**ranked(1, 2), "prompt": None}], "the prompt should be text"),
    "column": ([{"prompt": "x", "generations": []}], "expected those of one layout"),
    "later column": ([ranked(1, 2), {"prompt": "x", "generations": []}], "no column ranking"),
    "votes": ([{"prompt": "x", "file_path": ["a.png", "b.png"], "human_preference": [1, 1]}], "labels 1 and 0"),
    "three": ([{"prompt": "x", "file_path": ["a.png"] * 3, "human_preference": [1, 0]}], "too many values"),
    "empty": ([], "found none such"),
    "object": ({"prompt": "x"}, "found none such"),
    "nan": ([ranked(1, float("nan"))], "a finite rank"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_a_bad_json_file_is_named_with_what_is_wrong(tmp_path, case):
    value, message = BAD_JSON[case]
    put(tmp_path, "a.png", "b.png", "c.png")
    file = put_json(tmp_path / "bad.json", value)
    with pytest.raises(UsageError, match=message) as error:
        list(read_preferences(file))
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


BAD_PAIRS = {
    "missing column": (
        [{"prompt": "x", "first": "a.png", "second": "b.png", "lable": 1}],
        "expected those of one layout",
    ),
    "later": ([PAIR, {"prompt": "x", "first": "a.png", "second": "c.png"}], "no column label"),
    "one class": ([PAIR, {**PAIR, "second": "c.png"}], "the label of every pair is 1; .* better and worse"),
    "label": ([{**PAIR, "label": 0.3}], "a label should be 1"),
    "itself": ([{**PAIR, "second": "a.png"}], "two of 1 images"),
    "words": ([{**PAIR, "label": "first"}], "could not convert"),
}


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl"])
@pytest.mark.parametrize("case", BAD_PAIRS)
def test_bad_pairs_are_named_with_what_is_wrong(tmp_path, case, name):
    if (case, name) == ("later", "pairs.csv"):
        pytest.skip("a CSV file has its columns once")
    rows, message = BAD_PAIRS[case]
    with pytest.raises(UsageError, match=message):
        list(read_preferences(own(tmp_path, rows, name)))


def test_files_that_are_no_data(tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes(b'[{"prompt": ')
    (tmp_path / "y.parquet").write_bytes(b"PAR1")
    (tmp_path / "z.txt").touch()
    for name, message in [("x.json", "no json file"), ("y.parquet", "no parquet file"), ("z.txt", "ending in")]:
        with pytest.raises(UsageError, match=message):
            read_preferences(tmp_path / name)
    with pytest.raises(UsageError, match=r"several data files: x\.json, y\.parquet"):
        read_preferences(tmp_path)
    with pytest.raises(UsageError, match="is not there"):
        read_preferences(tmp_path / "nothing")
    with pytest.raises(UsageError, match="expected a layout out of image-reward"):
        read_preferences(file, layout="hpd")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="holds no data file"):
        read_preferences(tmp_path / "folder")


def test_a_layout_can_be_asked_for_and_must_fit(tmp_path):
    put(tmp_path, "a.png", "b.png")
    file = put_json(tmp_path / "x.json", [ranked(1, 2)])
    assert len(list(read_preferences(file, layout="image-reward"))) == 1
    with pytest.raises(UsageError, match="no column file_path, human_preference"):
        read_preferences(file, layout="hpd-train")


def test_without_pyarrow_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    put_table(tmp_path / "a.parquet", [pick(1.0)])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install sp-rerank\[train\]"):
        read_preferences(tmp_path)


def test_a_group_of_one_is_left_out_and_counted(tmp_path, caplog):
    put(tmp_path, "a.png", "b.png")
    file = put_json(tmp_path / "x.json", [ranked(1), ranked(1, 2)])
    with caplog.at_level(logging.WARNING):
        assert [len(group.images) for group in read_preferences(file)] == [2]
    assert "1 groups of fewer than two images left out" in caplog.text
