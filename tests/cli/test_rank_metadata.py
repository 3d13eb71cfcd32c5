"""`rank` on the pictures of other tools: their own prompts, and ratings written into them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sp_rerank import cli, open_image
from sp_rerank.storage import ratings
from sp_rerank.storage.images import RECORD_KEY

Run = Callable[..., tuple[int, str, str]]
BRIGHT = ["--scorer", "brightness", "--device", "cpu"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def called(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sp-rerank", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(str(stop.value.code)), *capsys.readouterr()

    return called


def gray(name: str, level: int, prompt: str | None = None) -> Path:
    info = PngInfo()
    if prompt is not None:
        info.add_text("parameters", f"{prompt}\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1")
    Path(name).parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), (level,) * 3).save(name, pnginfo=info)
    return Path(name)


def test_the_prompt_of_the_images_is_taken(run: Run) -> None:
    for level in (50, 150):
        gray(f"in/{level}.png", level, "a lemon")
    code, out, err = run("rank", "in", "--json", *BRIGHT)
    record = json.loads(out)
    assert code == 0, err
    assert record["prompt"] == "a lemon"
    assert [row["file"] for row in record["ranking"]] == ["in/150.png", "in/50.png"]


def test_images_of_several_prompts_are_ranked_within_each(run: Run) -> None:
    gray("in/1.png", 50, "a lemon")
    gray("in/2.png", 150, "=a pear")
    gray("in/3.png", 250, "a lemon")
    gray("in/4.png", 99)
    code, out, err = run("rank", "in", "--json", *BRIGHT)
    record = json.loads(out)
    assert code == 0
    assert [one["prompt"] for one in record["rankings"]] == ["a lemon", "=a pear"]
    found = [[(row["rank"], row["file"]) for row in one["ranking"]] for one in record["rankings"]]
    assert found == [[(1, "in/3.png"), (2, "in/1.png")], [(1, "in/2.png")]]
    assert record["left_out"] == [{"file": "in/4.png", "why": "no prompt"}]
    assert "left out for want of a prompt: in/4.png; say with --prompt" in err
    code, out, _ = run("rank", "in", *BRIGHT)
    assert [line for line in out.splitlines() if line.endswith(":")] == ["a lemon:", "=a pear:"]
    code, out, _ = run("rank", "in", "--csv", *BRIGHT)
    lines = out.splitlines()
    assert lines[0] == "rank,score,file,prompt"
    assert lines[-1].endswith(", =a pear")  # no formula


def test_one_line_where_a_prompt_is_needed_and_none_is_known(run: Run) -> None:
    gray("in/1.png", 50)
    (Path("in") / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    code, out, err = run("rank", "in", *BRIGHT)
    assert code == 2
    assert out == ""
    assert err.splitlines() == [
        "error: no prompt is known of in/1.png, in/2.png; expected --prompt TEXT, metadata of AUTOMATIC1111, ComfyUI "
        "or InvokeAI, or a NAME.txt beside each image"
    ]


def test_ratings_are_written_and_the_pixels_stay(run: Run) -> None:
    files = [gray(f"in/{level}.png", level, "a lemon") for level in (0, 60, 120, 180, 240)]
    pixels = {file: open_image(file).tobytes() for file in files}
    code, first, err = run("rank", "in", "--write", "--json", *BRIGHT)
    assert code == 0, err
    for stars, file in enumerate(files, start=1):
        with Image.open(file) as image:
            xmp = image.info["xmp"] if "xmp" in image.info else image.info["XML:com.adobe.xmp"]
            text = xmp.decode() if isinstance(xmp, bytes) else xmp
            assert f'xmp:Rating="{stars}"' in text
            assert image.info[ratings.SCORE_KEY].endswith(f"rank {6 - stars} of 5")
        assert open_image(file).tobytes() == pixels[file]
    assert run("rank", "in", "--write", "--json", *BRIGHT)[1] == first  # as often as one likes


def test_a_file_that_cannot_be_written_is_named_and_the_others_are(run: Run) -> None:
    gray("in/1.png", 50)
    Image.new("RGB", (8, 8), "white").save("in/2.jpg", xmp=b"<damaged")
    before = Path("in/2.jpg").read_bytes()
    code, out, err = run("rank", "in", "--prompt", "a lemon", "--write", *BRIGHT)
    assert code == 74
    assert len(out.splitlines()) == 2
    assert "not written: " in err
    assert "the ratings of 1 images could not be written" in err
    assert Path("in/2.jpg").read_bytes() == before
    assert b"Rating" in Path("in/1.png").read_bytes()


def test_files_of_a_run_are_not_written(run: Run) -> None:
    words = ["--model", "mini", "--scorer", "brightness", "--steps", "1", "--n", "2", "--out", "run"]
    assert run("generate", "a lemon", *words)[0] == 0
    for place in ("run/images", "run/top"):
        code, _, err = run("rank", place, "--write", *BRIGHT)
        assert code == 2
        assert "sp-rerank pick" in err
    assert run("verify", "run")[0] == 0
    assert run("rank", "run/images", *BRIGHT)[0] == 0  # our own images tell their prompt


def test_sp_is_the_scorer_of_the_model_that_made_all_of_them(run: Run) -> None:
    def made(name: str, model: str | None) -> None:
        info = PngInfo()
        info.add_text(RECORD_KEY, json.dumps({"prompt": "a lemon", "model": model} if model else {"prompt": "a lemon"}))
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), (200, 180, 20)).save(name, pnginfo=info)

    made("mini/1.png", "mini")
    made("mini/2.png", "mini")
    code, _, err = run("rank", "mini", "--json", "--device", "cpu")
    assert code == 0, err
    assert "stable-preference-mini, which belongs to the mini model" in err
    for other in ("some/model", None):
        made("mixed/1.png", "mini")
        made("mixed/2.png", other)
        _, _, err = run("rank", "mixed", "--json", "--device", "cpu")
        assert "images of unknown origin" in err


def test_the_model_is_not_looked_for_where_no_scorer_depends_on_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    gray("in/1.png", 50)
    monkeypatch.setattr("sp_rerank.cli.rank._model_of", lambda files: pytest.fail("read every file once more"))
    assert run("rank", "in", "--prompt", "a lemon", *BRIGHT)[0] == 0
