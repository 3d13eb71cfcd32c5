"""Images that exist: a choice without near-copies, ties, and how the command says so. The rest is in test_cli.py."""

import csv
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image, ImageDraw
from typer.testing import CliRunner

import sp_rerank
from sp_rerank import load_scorer
from sp_rerank.cli.rank import rank as command
from sp_rerank.errors import UsageError
from sp_rerank.rank import rank_files
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.scorers.calibration import ScorerCalibration
from sp_rerank.storage import images


class ByLook(BrightnessScorer):
    """Brightness, with the mean color as the embedding; counts the images that it embeds."""

    def __init__(self):
        self.embedded = 0

    def embed(self, images):
        self.embedded += len(images)
        return torch.tensor(np.array([np.asarray(image).mean((0, 1)) for image in images]))


@pytest.fixture
def files(tmp_path):
    """Three almost equal light reds, a blue, a dark green, fourteen that are darker still, and a file that is none."""
    colors = [(250, 180, 180), (250, 179, 180), (249, 180, 179), (120, 120, 250), (30, 130, 30)]
    for number, color in enumerate([*colors, *np.random.default_rng(0).integers(0, 40, (14, 3)).tolist()]):
        Image.new("RGB", (6, 6), tuple(color)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_text("no image")
    return [tmp_path / f"{number}.png" for number in range(19)] + [tmp_path / "broken.png"]


def test_a_diverse_choice_is_no_two_reds_and_shows_what_stands_back(files):
    scorer = ByLook()
    plain = rank_files([scorer], "x", files, 2)
    assert ([row.file.stem for row in plain.files], plain.cost, scorer.embedded) == (["0", "1"], 0, 0)
    chosen = rank_files([scorer], "x", files, 2, diverse=True)
    assert len(chosen.unreadable) == 1
    assert scorer.embedded == 19
    assert [(row.file.stem, row.rank) for row in chosen.files] == [("0", 1), ("3", 4)]
    everything = rank_files([scorer], "x", files).files
    first, second, _, fourth = (row.scores["brightness"] for row in everything[:4])
    assert chosen.cost == pytest.approx((first + second) / 2 - (first + fourth) / 2)
    assert [everything[0], everything[3]] == chosen.files


def test_a_scorer_without_embeddings_says_so_before_it_scores(files):
    with pytest.raises(UsageError, match="scorer brightness has no embeddings of images"):
        rank_files([BrightnessScorer()], "x", files, 2, diverse=True)


APP = typer.Typer()
APP.command("rank")(command)


def run(files, *words):
    result = CliRunner().invoke(APP, [str(files[0].parent), "--prompt", "x", *words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command_says_what_a_diverse_choice_costs_and_what_ties(files, monkeypatch):
    monkeypatch.setattr("sp_rerank.cli.rank.load_scorer", lambda spec, model, device, *dtype: ByLook())
    result = run(files, "--scorer", "brightness", "--top-k", "2", "--diverse")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["1", "4"]
    assert "no near-copies: ranks 1, 4; their mean score is 0.0" in result.stderr
    assert "no calibration: ties unknown" in result.stderr
    record = json.loads(run(files, "--scorer", "brightness", "--top-k", "2", "--diverse", "--json").stdout)
    assert [row["rank"] for row in record["ranking"]] == [1, 4]
    assert record["cost"] > 0
    assert not record["calibrated"]
    with pytest.raises(UsageError, match="say how many with --top-k"):
        run(files, "--scorer", "brightness", "--diverse")


def test_the_command_says_which_are_not_told_apart(files, monkeypatch):
    known = ScorerCalibration("brightness", 0.002, "d", 4, 0.0, True)
    monkeypatch.setattr("sp_rerank.scorers.calibration.calibration_of", lambda scorer: known)
    result = run(files, "--scorer", "brightness", "--top-k", "4")
    assert "the first 2 are not told apart: simulated people would differ about them" in result.stderr
    record = json.loads(run(files, "--scorer", "brightness", "--json", "--top-k", "4").stdout)
    assert record["calibrated"]
    assert [row["tie_group"] for row in record["ranking"]] == [1, 1, 2, 3]


def paths(result):
    return [row["file"] for row in json.loads(result.stdout)["ranking"]]


def invoke(*words):
    result = CliRunner().invoke(APP, ["--prompt", "x", "--scorer", "brightness", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_files_and_folders_are_ranked_together_and_what_is_left_out_is_said(tmp_path):
    for number, name in enumerate(["a.png", "folder/b.png", "folder/deep/c.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (50 * number, 0, 0)).save(tmp_path / name)
    (tmp_path / "folder" / "gone.png").symlink_to("nowhere")
    a, folder = tmp_path / "a.png", tmp_path / "folder"
    result = invoke(a, folder, "--json")
    assert paths(result) == [str(folder / "b.png"), str(a)]
    assert json.loads(result.stdout)["left_out"] == [
        {"file": str(folder / "deep"), "why": "folder"},
        {"file": str(folder / "gone.png"), "why": "broken link"},
    ]
    assert f"left out folders (--recursive takes those that are no links): {folder / 'deep'}" in result.stderr
    assert f"left out broken links: {folder / 'gone.png'}" in result.stderr
    assert paths(invoke(folder, "--recursive", "--json")) == [str(folder / "deep" / "c.png"), str(folder / "b.png")]


@pytest.mark.parametrize("name", ["a\nb.png", "\N{MAN}\u200d\N{PERSONAL COMPUTER}.png", "=x.png", "-x.png", '"q",.png'])
def test_the_paths_of_csv_exist_and_are_no_formulas(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / name)
    result = invoke("--csv", "--", name)
    (row,) = csv.DictReader(io.StringIO(result.stdout, newline=""))
    assert Path(row["file"]).resolve() == tmp_path / name
    assert row["file"][0] not in "=+-@"


def test_a_run_folder_is_no_folder_of_images(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    Image.new("RGB", (4, 4)).save(tmp_path / "grid.png")
    with pytest.raises(UsageError, match="is a run folder; to rank its candidates by more scorers: sp-rerank compare"):
        invoke(tmp_path)


def test_of_three_copies_and_another_the_other_is_shown(tmp_path, monkeypatch):
    for number, color in enumerate([(250, 0, 0)] * 3 + [(0, 0, 90)]):
        Image.new("RGB", (4, 4), color).save(tmp_path / f"{number}.png")
    monkeypatch.setattr("sp_rerank.cli.rank.load_scorer", lambda spec, model, device, *dtype: ByLook())
    result = invoke(tmp_path, "--diverse", "--top-k", "2", "--json")
    assert [Path(path).name for path in paths(result)] == ["0.png", "3.png"]
    assert "no near-copies: ranks 1, 4" in result.stderr
    result = invoke(tmp_path, "--diverse", "--top-k", "3", "--json")
    assert [Path(path).name for path in paths(result)] == ["0.png", "1.png", "3.png"]
    assert "no near-copies" not in result.stderr
    assert "1 near-copies, for want of other images: ranks 1, 2, 4" in result.stderr


def test_ties_are_counted_among_all_images_and_not_spoken_of_where_there_is_one(tmp_path, monkeypatch):
    known = ScorerCalibration("brightness", 0.002, "d", 4, 0.0, False)
    monkeypatch.setattr("sp_rerank.scorers.calibration.calibration_of", lambda scorer: known)
    for number in range(3):
        Image.new("RGB", (4, 4), (200, 0, 0)).save(tmp_path / f"{number}.png")
    assert "the first 3 are not told apart" in invoke(tmp_path, "--top-k", "1").stderr
    assert invoke(tmp_path / "0.png").stderr == ""


def test_no_more_pixels_are_open_together_than_one_large_image_has(monkeypatch):
    asked = []

    class Counts(BrightnessScorer):
        def score(self, prompt, images):
            asked.append([image.width for image in images])
            return super().score(prompt, images)

    monkeypatch.setattr(sys.modules["sp_rerank.scorers.batches"], "PIXELS_AT_ONCE", 100)
    sizes = [5, 5, 5, 5, 5, 11, 2, 2]
    best = sp_rerank.rank(Counts(), "x", [Image.new("RGB", (side, side)) for side in sizes])
    assert asked == [[5, 5, 5, 5], [5], [11], [2, 2]]
    assert [entry.image.width for entry in best] == sizes
    assert [entry.seed for entry in best] == [None] * 8


def yellow_disc():
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((10, 10, 50, 50), (250, 230, 60, 255))
    return image


def test_an_image_and_its_file_have_the_same_score(tmp_path):
    scorer = load_scorer("clip-mini")
    yellow_disc().save(tmp_path / "disc.png")
    (file,) = rank_files([scorer], "a lemon", [tmp_path / "disc.png"]).files
    (image,) = sp_rerank.rank(scorer, "a lemon", [yellow_disc()])
    assert image.score == pytest.approx(0.7865, abs=5e-4)
    assert list(file.scores.values()) == [image.score]
    assert scorer.score("a lemon", [yellow_disc()]).item() == image.score


def test_a_dual_encoder_embeds_images():
    scorer = load_scorer("clip-mini")
    grays = [Image.new("RGB", (20, 30 + i), (i, i, i)) for i in range(70)]  # more than one pass
    embedded = scorer.embed(grays)
    assert (embedded.shape, embedded.requires_grad) == ((70, scorer.config["embed_dim"]), False)
    assert torch.allclose(embedded.norm(dim=1), torch.ones(70), atol=1e-5)
    assert torch.allclose(embedded[65:], scorer.embed(grays[65:]), atol=1e-5)


def test_an_image_of_16_bits_and_its_file_have_the_same_score(tmp_path):
    """Its own conversion by Pillow clips all but the darkest to white."""
    scorer = load_scorer("clip-mini")
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    wide = Image.fromarray(np.tile(ramp, (64, 1)))
    wide.save(tmp_path / "wide.png")
    (file,) = rank_files([scorer], "a lemon", [tmp_path / "wide.png"]).files
    narrow = Image.fromarray(((ramp.astype(int) + 128) // 257).astype(np.uint8)[None].repeat(64, 0))
    assert wide.mode == "I;16"
    assert list(file.scores.values()) == [sp_rerank.rank(scorer, "a lemon", [wide])[0].score]
    assert list(file.scores.values()) == [scorer.score("a lemon", [narrow]).item()]


def test_an_image_turned_by_exif_is_scored_upright(tmp_path):
    scorer = load_scorer("clip-mini")
    upright = Image.new("RGB", (40, 64), "white")
    ImageDraw.Draw(upright).ellipse((2, 4, 30, 30), "yellow")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    (file,) = rank_files([scorer], "a lemon", [tmp_path / "turned.png"]).files
    assert list(file.scores.values()) == [scorer.score("a lemon", [upright]).item()]


def test_of_a_large_file_each_scorer_gets_a_reading_of_its_own(tmp_path, monkeypatch):
    """The caller's copy and the scorer's are never in memory together."""
    monkeypatch.setattr(sys.modules["sp_rerank.scorers.batches"], "PIXELS_AT_ONCE", 100)
    asked = []

    class Wipes(ByLook):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def score(self, prompt, images):
            asked.append([image.getpixel((0, 0)) for image in images])
            scores = super().score(prompt, images)
            for image in images:
                image.paste("black", (0, 0, *image.size))
            return scores

    for number, side in enumerate((4, 12, 12)):
        Image.new("RGB", (side, side), (number, 200, 0)).save(tmp_path / f"{number}.png")
    files = sorted(tmp_path.iterdir())
    found = rank_files([Wipes("a"), Wipes("b")], "x", files, 3, diverse=True)
    assert asked == [[(0, 200, 0)]] * 2 + [[(1, 200, 0)]] * 2 + [[(2, 200, 0)]] * 2
    assert [file.scores["b"] for file in found.files] == [file.scores["a"] for file in found.files]
    assert found.copies == 2


PEAK = """
import sys
import time
from pathlib import Path
from sp_rerank import load_scorer
from sp_rerank.rank import rank_files
from sp_rerank.scorers.preprocess import Preprocess
scorers = [load_scorer(name) for name in sys.argv[2].split(",")]
if "padded" in sys.argv:
    scorers[0].preprocess = Preprocess(scorers[0].preprocess.size, geometry="longest_edge_pad")
files = sorted(Path(sys.argv[1]).iterdir())
found = rank_files(scorers, "a lemon", files, len(files), diverse="diverse" in sys.argv)
assert found.readable == len(files)
status = Path("/proc/self/status").read_text()
print(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
"""
"""The peak is asked of the process itself: what `wait4` says of a child counts from what its parent has."""


def large_palette():
    image = Image.new("P", (8000, 7999))
    image.putpalette([value // 3 for value in range(768)])
    image.paste(7, (100, 100, 5000, 6000))
    return image


LARGE = {
    "eight palettes": (large_palette, 8, ["clip-mini"]),
    "several scorers": (lambda: large_palette().convert("RGB"), 2, ["clip-mini,brightness", "diverse"]),
    "a padded square": (lambda: large_palette().convert("RGB"), 1, ["clip-mini", "padded"]),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read where Linux writes it")
@pytest.mark.parametrize("case", LARGE)
def test_large_images_are_ranked_within_a_gigabyte_and_a_half(tmp_path, case):
    make, count, words = LARGE[case]
    make().save(tmp_path / "0.png", compress_level=1)
    for number in range(1, count):
        os.link(tmp_path / "0.png", tmp_path / f"{number}.png")
    peaks: list[int] = []
    while not peaks or (peaks[-1] >= 1.5e9 and len(peaks) < 3):  # on a busy machine now and then 20 % more
        ended = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path), *words], capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        peaks.append(int(ended.stdout) * 1024)
    print(f"{case}: {', '.join(f'{peak / 1e6:.0f}' for peak in peaks)} MB")
    assert peaks[-1] < 1.5e9


def slow_reading(monkeypatch, seconds):
    """Files take their time, as large ones do, and other threads may go on meanwhile."""
    read = images.open_image
    monkeypatch.setattr(images, "open_image", lambda path: time.sleep(seconds) or read(path))


def test_files_are_read_side_by_side_and_while_others_are_scored(tmp_path, monkeypatch):
    class Slow(BrightnessScorer):
        def score(self, prompt, images):
            time.sleep(0.02 * len(images))
            return super().score(prompt, images)

    for number in range(64):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    files = sorted(tmp_path.iterdir())
    slow_reading(monkeypatch, 0.02)
    took, orders = {}, []
    for readers in (1, 8):
        began = time.perf_counter()
        orders.append(rank_files([Slow()], "x", files, readers=readers))
        took[readers] = time.perf_counter() - began
    assert orders[0] == orders[1]
    one_after_another = 64 * (0.02 + 0.02)
    assert took[1] < 0.85 * one_after_another  # one thread reads while a batch is scored
    began = time.perf_counter()
    rank_files([BrightnessScorer()], "x", files, readers=1)
    alone = time.perf_counter() - began
    began = time.perf_counter()
    rank_files([BrightnessScorer()], "x", files, readers=4)
    assert alone / (time.perf_counter() - began) > 1.7
