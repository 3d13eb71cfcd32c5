"""Which files are taken for images, and what is said of the others."""

import os

import pytest
from PIL import Image

from sp_rerank.errors import UsageError
from sp_rerank.storage.image_files import find_images


def save(path, file_format="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, file_format)
    return path


def names(found):
    return [path.name for path in found.files]


def test_images_come_in_the_order_of_their_numbers(tmp_path):
    expected = ["2.png", "10.PNG", "a1.jpg", "a02.webp", "A3.jpeg", "b.tiff", "c.jfif", "d.avif"]
    for name in expected:
        (tmp_path / name).touch()
    assert names(find_images([tmp_path])) == expected


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
def test_an_image_of_another_name_is_known_by_its_first_bytes(tmp_path, file_format):
    save(tmp_path / "download", file_format)
    save(tmp_path / "photo.png_large", file_format)
    assert names(find_images([tmp_path])) == ["download", "photo.png_large"]


def test_everything_else_is_named_with_the_reason(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "deeper" / "b.png")
    (tmp_path / ".hidden.png").touch()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("BMW and GIF")
    (tmp_path / "x.svg").write_text("<svg/>")
    os.mkfifo(tmp_path / "pipe.png")
    found = find_images([tmp_path])
    assert names(found) == ["a.png"]
    assert {item.path.name: item.why for item in found.left_out} == {
        ".hidden.png": "hidden",
        "dangling.png": "broken link",
        "deeper": "folder",
        "notes.txt": "no image",
        "pipe.png": "not a file",
        "x.svg": "no image",
    }


def test_folders_of_folders_are_taken_when_asked_for_and_links_to_folders_never(tmp_path):
    save(tmp_path / "top" / "a.png")
    save(tmp_path / "top" / "deep" / "er" / "b.png")
    save(tmp_path / "elsewhere" / "c.png")
    (tmp_path / "top" / "loop").symlink_to(tmp_path / "top")
    (tmp_path / "top" / "other").symlink_to(tmp_path / "elsewhere")
    found = find_images([tmp_path / "top"], recursive=True)
    assert names(found) == ["a.png", "b.png"]
    assert [(item.path.name, item.why) for item in found.left_out] == [("loop", "folder"), ("other", "folder")]


def test_files_and_folders_together_are_taken_once_each(tmp_path):
    a, b = save(tmp_path / "a.png"), save(tmp_path / "folder" / "b.png")
    (tmp_path / "text.txt").touch()
    found = find_images([b, a, tmp_path / "folder", tmp_path / "text.txt"])
    assert found.files == [b, a, tmp_path / "text.txt"], "what is named itself is tried, and its error says what it is"


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"none\.png: expected an image file or a folder of images"):
        find_images([tmp_path / "none.png"])
