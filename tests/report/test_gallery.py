"""The gallery as text: what it says, what it must never hold, and runs in which something is wrong."""

import base64
import hashlib
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.hostile_prompts import HOSTILE
from support.painted_runs import make_run, png
from support.runs import summary_of

from sp_rerank.cli.gallery import gallery as command
from sp_rerank.config import Stage, StopRules
from sp_rerank.errors import SpRerankError, UsageError
from sp_rerank.report import orderings
from sp_rerank.report.gallery import gallery, write_gallery
from sp_rerank.report.orderings import orderings_of
from sp_rerank.report.overview import write_overview
from sp_rerank.run.folder import RunDir
from sp_rerank.run.records import StageScore
from sp_rerank.run.summary import encode_summary
from sp_rerank.run.writer import add_scores
from sp_rerank.scorers import calibration

GOLDEN = Path(__file__).parents[1] / "data" / "run_v1"


class Page(HTMLParser):
    """What a parser finds: tags with their attributes, the text of each element with an id, and of all."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open, self.scripts = [], {}, [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "input", "path", "rect", "circle"):
            self.open.append((tag, dict(attributes).get("id") or tag))

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for _, name in self.open:
            self.texts[name] = self.texts.get(name, "") + data

    def all(self, tag, **wanted):
        return [a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in wanted.items())]

    @property
    def data(self):
        return json.loads(self.texts["data"])

    @property
    def sheet(self):
        """(index, caption) of each candidate, in order."""
        items = [attributes["id"] for attributes in self.all("li") if "data-index" in attributes]
        return [(int(name[1:]), " ".join(self.texts[name].split())) for name in items]

    @property
    def says(self):
        return " ".join(self.texts["body"].split())


def page_of(run):
    return Page(gallery(run).decode())


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", {"a@1f": [0.1, 0.4, 0.2, 0.3], "b@2f": [7.0, 5.0, 8.0, 6.0]})


# What it says


def test_every_candidate_is_there_in_the_first_scorers_order(run):
    page = page_of(run)
    assert page.sheet == [(1, "1 0.400 #41"), (3, "2 0.300 #43"), (2, "3 0.200 #42"), (0, "4 0.100 #40")]
    assert page.texts["h1"] == "a lemon on the beach"
    assert page.data["scorers"][1]["order"] == [2, 0, 3, 1]
    assert "first by a: seed 41 1st by a, 0.400 4th by b, 5.00" in page.says
    assert "first by b: seed 42 3rd by a, 0.200 1st by b, 8.00" in page.says


def test_images_are_lazy_and_have_their_size(run):
    images = page_of(run).all("img", loading="lazy")
    assert [image["src"] for image in images] == [f"images/0000{index}.png" for index in (1, 3, 2, 0)]
    assert {(image["width"], image["height"], image["decoding"]) for image in images} == {("24", "24", "async")}


def test_the_figures_say_what_the_statistics_say(run):
    says = page_of(run).says
    assert "a and b agree with Kendall’s τ = -0.67 and share 4 of their best 4." in says
    assert "scores on average 0.250 for n = 1, 0.400 for n = 4; with 4 it has 95 % of the gain." in says
    # b of a's pick is 5, b's mean 6.5 and best 8
    assert "By b, which did not pick, the pick of all is -100 % of the way to its own best." in says


def test_two_scorers_of_one_short_name_are_told_apart(tmp_path):
    run = make_run(tmp_path / "run", {"sp@aaa": [0.1, 0.2], "sp@bbb": [0.2, 0.1], "clip@ccc": [1.0, 2.0]})
    assert [ordering.label for ordering in orderings_of(run)] == ["sp@aaa", "sp@bbb", "clip"]


def test_scores_that_were_added_are_shown(run):
    page = page_of(add_scores(run.path, {"c@3f": {0: 1.0, 1: float("nan"), 2: 3.0}}))
    assert [scorer["label"] for scorer in page.data["scorers"]] == ["a", "b", "c"]
    assert page.data["scorers"][2]["order"] == [2, 0, 1, 3]
    assert page.data["scorers"][2]["ranked"] == 2
    assert [page.data["candidates"][i]["scores"][2] for i in "0123"] == [1.0, None, 3.0, None]


def test_tie_groups_come_from_a_calibration(run, monkeypatch):
    known = calibration.ScorerCalibration("a@1f", 0.15 / 0.6931471805599453, "test", 10, 0.1, True)
    monkeypatch.setattr(orderings, "calibration_of", lambda name: known if name == "a@1f" else None)
    page = page_of(run)
    assert [scorer["groups"] for scorer in page.data["scorers"]] == [[1, 1, 2, 2], None]
    assert "not told apart from 1 other by a" in page.says


def test_a_search_shows_where_candidates_fell_and_what_it_saved(tmp_path):
    far, near = StageScore(Stage("draft", 4), 0.5, 5), StageScore(Stage("preview", 6, 16), None, 6)
    run = make_run(
        tmp_path / "run",
        {"a": [0.1, None, None, None, None]},
        status=lambda index: ["ok", "dropped", "dropped", "flagged", "nonfinite"][index],
        stages=lambda index: [(far,), (far,), (far, near), (), ()][index],
        search={"strategy": "halving", "rounds": [[0.25, 3], [0.4, 2]]},
    )
    page = page_of(run)
    assert page.sheet == [
        (0, "1 0.100 #40"),
        (2, "dropped #42 preview, 6 of 16 steps"),
        (1, "0.500 #41 draft, 4 steps"),
        (3, "flagged #43"),
        (4, "not finite #44"),
    ]
    assert "halving search" in page.says
    assert "2 dropped by the search." in page.says
    assert "72 evaluations of the denoiser instead of 85: 85 %." in page.says
    assert "3 × draft, 4 steps → 1 × preview, 6 of 16 steps → 3 × all steps." in page.says
    classes = {a["id"]: a["class"] for a in page.all("li") if "data-index" in a}
    assert classes == {"c0": "ok", "c1": "dropped", "c2": "dropped", "c3": "flagged", "c4": "nonfinite"}


def test_a_steered_run_offers_no_command_that_would_be_refused(tmp_path):
    steered = page_of(make_run(tmp_path / "steered", {"a": [0.1, 0.4]}, search={"strategy": "steering"}))
    assert "steering search" in steered.says
    assert "Picked by a" not in steered.says  # the best of n takes candidates that do not depend on each other
    assert "the images descend from others of their batch, and no seed alone makes one again" in steered.says
    assert "replay" not in steered.texts
    assert steered.all("button", id="copy") == []
    other = page_of(make_run(tmp_path / "other", {"a": [0.1, 0.4]}))
    assert "sp-rerank replay" in other.texts["replay"]
    assert "Picked by a" in other.says
    assert "descend" not in other.says


def test_one_scorer_shows_its_best_four(tmp_path):
    page = page_of(make_run(tmp_path / "run", {"a": [0.1, 0.5, 0.2, 0.4, 0.3]}))
    assert [a["data-index"] for a in page.all("figure", **{"class": "pick"})] == ["1", "3", "4", "2"]
    assert page.all("input", name="scorer") == []
    assert page.all("section", id="columns") == []


# One static file


def test_it_is_the_same_wherever_the_run_lies(run, tmp_path):
    first = gallery(run)
    shutil.move(run.path, tmp_path / "elsewhere")
    assert gallery(RunDir.read(tmp_path / "elsewhere")) == first
    assert str(tmp_path).encode() not in first


def test_it_asks_for_nothing_but_the_runs_images(run):
    page = page_of(run)
    assert {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "base", "audio", "video"} == set()
    loaded = [a["src"] for _, a in page.tags if "src" in a]
    assert set(loaded) == {f"images/0000{index}.png" for index in range(4)}
    assert [a for _, a in page.tags if "style" in a] == []


def test_the_policy_lets_in_what_is_there_and_nothing_else(run):
    text = gallery(run).decode()
    (policy,) = [a["content"] for a in Page(text).all("meta") if a.get("http-equiv") == "Content-Security-Policy"]

    def digest(pattern):
        (found,) = re.findall(pattern, text, re.S)
        return base64.b64encode(hashlib.sha256(found.encode()).digest()).decode()

    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src 'self' file:",
        f"style-src 'sha256-{digest('<style>(.*?)</style>')}'",
        f"script-src 'sha256-{digest('<script>(.*?)</script>')}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


@pytest.mark.parametrize("prompt", HOSTILE)
def test_a_prompt_is_only_text(tmp_path, prompt):
    scores = {f"a{prompt}@1": [0.1, 0.2], "b": [0.1, 0.2]}
    run = make_run(tmp_path / "run", scores, prompt=prompt, negative_prompt=prompt)
    page = page_of(run)
    assert [a.get("type") for a in page.all("script")] == ["application/json", None]
    assert [name for _, attributes in page.tags for name in attributes if name.startswith("on")] == []
    assert page.texts["h1"] == page.texts["prompt"] == page.texts["q"] == page.data["prompt"] == prompt
    assert page.data["scorers"][0]["name"] == f"a{prompt}@1"
    assert {tag for tag, _ in page.tags} & {"iframe", "base"} == set()


@pytest.mark.parametrize("prompt", ["x" * 5000, "", " \n "])
def test_a_prompt_of_any_kind_makes_a_page(tmp_path, prompt):
    page = page_of(make_run(tmp_path / "run", {"a": [0.1]}, prompt=prompt))
    assert page.sheet == [(0, "1 0.100 #40")]
    assert len(page.texts["title"]) < 100


# Runs in which something is wrong


def test_a_run_without_scores_is_shown_as_it_was_made(tmp_path):
    page = page_of(make_run(tmp_path / "run", {}, n=3))
    assert page.sheet == [(0, "#40"), (1, "#41"), (2, "#42")]
    assert "No candidate has a score" in page.says
    assert page.all("section", id="figures") == []


def test_a_scorer_without_a_usable_score_is_named(tmp_path):
    page = page_of(make_run(tmp_path / "run", {"a": [0.1, 0.2], "b": [None, None]}))
    assert "b: no usable candidate has a score by it." in page.says
    assert [scorer["name"] for scorer in page.data["scorers"]] == ["a"]


def test_a_run_that_is_not_complete_is_shown_as_far_as_it_is(tmp_path):
    page = page_of(make_run(tmp_path / "run", {"a": [0.1, 0.2]}, n=5))
    assert [index for index, _ in page.sheet] == [1, 0]
    assert "2 of 5 candidates so far" in page.says


def test_a_run_that_a_rule_ended_is_complete(tmp_path):
    run = make_run(tmp_path / "run", {"a": [0.1, 0.3, 0.2]}, n=40, stop=StopRules(confidence=0.9))
    assert "3 of 40 candidates so far; resume the run" in page_of(run).says  # cut short: nothing is chosen yet
    (run.path / "top").mkdir()
    assert "so far" in page_of(run).says  # the best of a run that goes on again may still be there
    (run.path / "result.json").write_bytes(encode_summary(summary_of(1, n=40, by="confidence", detail="sure")))
    page = page_of(run)
    assert "A rule ended the run after 3 of 40 candidates." in page.says
    assert "so far" not in page.says
    assert "3 candidates by mini" in page.says
    assert "seeds 40–42" in page.says
    assert page.data["last"] == 2
    overview = Page(write_overview(tmp_path)[0].read_text(encoding="utf-8"))
    assert overview.texts["h1"] == "The best of 3"
    assert overview.texts["row1-1"].strip().startswith("a lemon on the beach ended by a rule after 3 of 40")


def test_a_run_that_has_just_begun(tmp_path):
    make_run(tmp_path / "run", {"a": []}, n=5)
    assert "No candidate has been made yet." in page_of(RunDir.read(tmp_path / "run")).says


def test_missing_and_altered_images_are_marked(run):
    run.image(0).unlink()
    run.image(1).write_bytes(png(9, (64, 8)))
    run.image(2).unlink()
    run.image(2).mkdir()
    page = page_of(run)
    assert page.sheet == [
        (1, "1 0.400 #41 altered"),
        (3, "2 0.300 #43"),
        (2, "no image 3 0.200 #42"),
        (0, "no image 4 0.100 #40"),
    ]
    assert {a["src"] for a in page.all("img")} == {"images/00001.png", "images/00003.png"}
    assert "1 image: changed since it was made" in page.says
    assert "2 images: the file is missing" in page.says
    assert page.data["candidates"]["1"]["why"] == "changed since it was made, the SHA-256 differs"


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_path_that_leads_out_is_not_followed(run, tmp_path):
    (tmp_path / "secret.png").write_bytes(png(1))
    run.image(1).unlink()
    (run.path / "images" / "00001.png").symlink_to(tmp_path / "secret.png")
    page = page_of(run)
    assert "images/00001.png" not in {a.get("src") for a in page.all("img")}
    assert page.data["candidates"]["1"]["file"] is None
    assert "1 image: the path leads out of the run folder" in page.says


@pytest.mark.parametrize(
    "scores", [[3e38, -3e38, 1.0], [1e308, -1e308, 0.0], [5e-324, 0.0, 1e-45], [1e15, 1e15 + 1, 0.0]]
)
def test_numbers_that_no_scorer_gives_make_a_page(tmp_path, scores):
    assert len(page_of(make_run(tmp_path / "run", {"a": scores, "b": [1.0, 2.0, 3.0]})).sheet) == 3


def test_equal_scores_have_no_figures_to_be_wrong_about(tmp_path):
    says = page_of(make_run(tmp_path / "run", {"a": [0.5] * 3, "b": [0.1, 0.2, 0.3]})).says
    assert "a and b agree with no defined degree" in says
    assert "Picked by a" not in says


def test_the_golden_folder_of_schema_1_has_a_gallery(tmp_path):
    page = page_of(RunDir.read(GOLDEN))
    assert page.sheet == [(0, "1 0.250 #42"), (1, "flagged #43"), (2, "not finite #44")]
    assert page.texts["h1"] == "a lemon wearing sunglasses, 日本"


# Writing


def test_it_replaces_an_older_one_and_leaves_the_run_sound(run):
    assert write_gallery(run) == run.path / "index.html"
    first = (run.path / "index.html").read_bytes()
    add_scores(run.path, {"c": {0: 1.0, 1: 2.0}})
    write_gallery(RunDir.read(run.path))
    assert (run.path / "index.html").read_bytes() != first
    assert RunDir.read(run.path).verify() == []


def test_the_command_takes_a_run_or_a_folder_of_runs(run, tmp_path, capsys):
    command(run.path)
    assert capsys.readouterr().out == f"{run.path / 'index.html'}\n"
    (run.path / "index.html").unlink()
    command(tmp_path)
    assert capsys.readouterr().out == f"{tmp_path / 'index.html'}\n"
    assert (run.path / "index.html").exists()


# A folder of runs


def test_a_row_a_run_and_a_picture_a_scorer(tmp_path):
    make_run(tmp_path / "one", {"a@1": [0.1, 0.4], "b@2": [5.0, 4.0]}, prompt="a <b>lemon</b>")
    make_run(tmp_path / "two", {"a@1": [0.1, 0.4], "b@2": [4.0, 5.0]}, prompt="a penguin")
    make_run(tmp_path / "part", {"a@1": [0.3]}, prompt="a kiwi", n=2)
    path, errors = write_overview(tmp_path)
    page = Page(path.read_text(encoding="utf-8"))
    assert errors == {}
    assert page.texts["h1"] == "The best of 2"
    prompts = [page.texts[f"row{row}-1"].partition(" seeds")[0] for row in (1, 2, 3)]
    assert prompts == ["a <b>lemon</b> 2 candidates", "a kiwi 1 of 2 so far", "a penguin 2 candidates"]
    assert "a and b choose the same image in 1 of 2 runs." in page.says
    assert [a["src"] for a in page.all("img")] == [
        "./one/images/00001.png", "./one/images/00000.png", "./part/images/00000.png",
        "./two/images/00001.png", "./two/images/00001.png",
    ]  # fmt: skip
    links = [a["href"] for a in page.all("a")]
    assert links[:3] == ["./one/index.html", "./one/index.html#c1", "./one/index.html#c0"]
    assert all((tmp_path / link.partition("#")[0]).is_file() for link in links)
    assert "a 0.400, seed 41 2nd by b" in page.says
    assert "no score by b" in page.says


@pytest.mark.skipif(os.name == "nt", reason="such names need another system")
def test_folders_of_any_name_and_runs_that_cannot_be_read(tmp_path):
    for name in HOSTILE[2:5]:
        make_run(tmp_path / name.replace("/", "_"), {"a": [0.1]}, prompt=name)
    make_run(tmp_path / "javascript:alert(1)", {"a": [0.1]})
    make_run(tmp_path / "new", {"a": [0.1]})
    make_run(tmp_path / "torn", {"a": [0.1]})
    (tmp_path / "new" / "run.json").write_text('{"schema": 99, "n": 1}')
    (tmp_path / "torn" / "candidates.jsonl").write_text("<script>alert(1)</script>\n")
    (tmp_path / "holiday").mkdir()
    path, errors = write_overview(tmp_path)
    page = Page(path.read_text(encoding="utf-8"))
    assert sorted(errors) == ["new", "torn"]
    assert page.all("script") == []
    assert [name for _, attributes in page.tags for name in attributes if name.startswith("on")] == []
    assert all(a["href"].startswith("./") for a in page.all("a"))
    assert "./javascript%3Aalert%281%29/index.html" in {a["href"] for a in page.all("a")}
    assert "schema 99, this one reads" in page.says
    assert "line 1 is damaged" in page.says
    assert str(tmp_path) not in path.read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_run_folder_behind_a_link_is_named_and_not_written_to(tmp_path):
    make_run(tmp_path / "elsewhere" / "run", {"a": [0.1]})
    make_run(tmp_path / "runs" / "own", {"a": [0.1]})
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere" / "run")
    _, errors = write_overview(tmp_path / "runs")
    assert list(errors) == ["link"]
    assert "leads out of the folder" in str(errors["link"])
    assert not (tmp_path / "elsewhere" / "run" / "index.html").exists()


@pytest.mark.parametrize(("name", "message"), [("none", "is not a folder"), (".", "no run folder and holds none")])
def test_a_folder_without_runs_is_refused(tmp_path, name, message):
    with pytest.raises(UsageError, match=message):
        write_overview(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# How large


@pytest.mark.parametrize("n", [100, 1000])
def test_a_candidate_takes_two_kilobytes_of_the_page(tmp_path, n):
    scores = {name: [(index * step % n) / n for index in range(n)] for name, step in (("a", 7), ("b", 3), ("c", 11))}
    assert len(gallery(make_run(tmp_path / "run", scores))) < 2000 * n


# A run.json that another hand changed

WRONG = {
    "null": None, "text": "x", "number": 7, "negative": -1, "huge": 10**400, "infinite": float("inf"), "true": True,
    "list": [], "lists": [[[]]], "object": {}, "objects": {"a": {"b": [None]}}, "long": "x" * 100_000,
}  # fmt: skip


def _trouble(write):
    """What writing raises: a line and exit code 2 or 74, if anything."""
    try:
        write()
    except SpRerankError as error:
        return error
    return None


def _check_named(error):
    assert error is None or error.exit_code in (2, 74), repr(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 2000


@pytest.mark.parametrize("wrong", [*WRONG, "missing"])
def test_a_run_json_of_wrong_types_is_shown_or_refused_in_a_line(tmp_path, wrong, capsys):
    run = make_run(tmp_path / "runs" / "run", {"a@1f": [0.1, 0.4], "b@2f": [7.0, 5.0]}, guidance_scale=5.0)
    whole = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    for key in [*whole, "an unknown key"]:
        changed = {**whole, key: WRONG.get(wrong)}
        if wrong == "missing":
            changed.pop(key)
        (run.path / "run.json").write_text(json.dumps(changed), encoding="utf-8")
        _check_named(_trouble(lambda: write_gallery(RunDir.read(run.path))))
        _check_named(_trouble(lambda: command(run.path)))
        _check_named(_trouble(lambda: command(run.path.parent)))
        for error in write_overview(run.path.parent)[1].values():
            _check_named(error)
        assert all(len(line) < 2000 for line in capsys.readouterr().err.splitlines())


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "7", "[" * 100_000, '{"a":' * 100_000, '{"schema": 2', "\0", "\ud800"]
)
def test_a_run_json_that_is_no_object_is_refused_in_a_line(tmp_path, text):
    run = make_run(tmp_path / "runs" / "run", {"a": [0.1, 0.4]})
    (run.path / "run.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    error = _trouble(lambda: command(run.path))
    assert error is not None
    _check_named(error)
    (error,) = write_overview(run.path.parent)[1].values()
    _check_named(error)
