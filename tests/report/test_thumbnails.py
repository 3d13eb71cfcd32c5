"""Thumbnails: of large images only, renewed with them, none of what is not as it was committed."""

from __future__ import annotations

from support.painted_runs import make_run

from sp_rerank.report.gallery import write_gallery
from sp_rerank.report.pictures import sizes_of
from sp_rerank.report.thumbnails import SIDE, write_thumbnails
from sp_rerank.run.folder import RunDir
from sp_rerank.storage.images import to_webp


def names(run):
    return sorted(path.name for path in (run.path / "thumbs").iterdir())


def test_small_images_need_none(tmp_path):
    run = make_run(tmp_path / "run", {"a": [0.1, 0.2]}, size=(SIDE, SIDE))
    write_gallery(run)
    assert not (tmp_path / "run" / "thumbs").exists()


def test_large_ones_are_made_once_and_renewed_with_the_image(tmp_path):
    run = make_run(tmp_path / "run", {"a": [0.1, 0.2]}, size=(SIDE + 1, 8))
    write_gallery(run)
    first = names(run)
    assert [name[:5] for name in first] == ["00000", "00001"]
    before = {name: (run.path / "thumbs" / name).stat().st_mtime_ns for name in first}
    write_thumbnails(run, sizes_of(run))
    assert {name: (run.path / "thumbs" / name).stat().st_mtime_ns for name in first} == before
    other = make_run(tmp_path / "other", {"a": [0.1, 0.2]}, size=(SIDE + 2, 8))
    for name in ("candidates.jsonl", "images/00000.png", "images/00001.png"):
        (run.path / name).write_bytes((other.path / name).read_bytes())
    write_gallery(RunDir.read(run.path))
    assert names(run) == names_after(other)
    assert not set(names(run)) & set(first)
    assert RunDir.read(run.path).verify() == []


def names_after(run):
    write_gallery(run)
    return names(run)


def test_an_image_that_was_changed_gets_none(tmp_path):
    run = make_run(tmp_path / "run", {"a": [0.1, 0.2]}, size=(SIDE + 1, 8))
    png = run.image(1).read_bytes()
    run.image(1).write_bytes(png[:-20])
    write_gallery(run)
    assert [name[:5] for name in names(run)] == ["00000"]


def test_a_picture_of_a_thousand_pixels_is_some_kilobytes(tmp_path):
    from PIL import Image

    noise = Image.effect_noise((1024, 1024), 40).convert("RGB")
    small = to_webp(noise, SIDE)
    assert len(small) < 60_000
    assert to_webp(noise, SIDE) == small
