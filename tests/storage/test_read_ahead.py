"""Files are read ahead by threads: in their order, within the bounds, and nothing hangs when the reading is over."""

import threading
import time

import pytest
from PIL import Image

from sp_rerank.errors import UnreadableImageError
from sp_rerank.storage import images
from sp_rerank.storage.read_ahead import read_ahead, reader_count


@pytest.fixture
def paths(tmp_path):
    """Forty squares whose sides tell them apart; the eighth is no image, the twentieth is large."""
    for number in range(40):
        side = 60 if number == 20 else 4 + number % 9
        Image.new("RGB", (side, side), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "08.png").write_text("no image")
    return sorted(tmp_path.iterdir())


class Watched:
    """Stands in for `images.open_image`: how many pixels are open, and were at most; slow for the early ones."""

    def __init__(self, monkeypatch):
        self.open, self.most, self.read, self.lock = 0, 0, [], threading.Lock()
        self.real = images.open_image
        monkeypatch.setattr(images, "open_image", self)

    def __call__(self, path):
        image = self.real(path)
        with self.lock:
            self.read.append(path)
            self.open += image.width * image.height
            self.most = max(self.most, self.open)
        time.sleep(0.02 if len(self.read) % 3 == 0 else 0)
        return image


def test_files_come_in_their_order_and_within_the_bounds(paths, monkeypatch):
    watched = Watched(monkeypatch)
    found = []
    for image in read_ahead(paths, files=10, pixels=400, largest=300, readers=6):
        found.append(image)
        if isinstance(image, Image.Image):
            watched.open -= image.width * image.height
        if image is None:
            assert watched.open == 0
            assert len(watched.read) == 19  # of the 20 before it one is no image, and none behind it is read
    assert [image.getpixel((0, 0))[0] for image in found if isinstance(image, Image.Image)] == [
        number for number in range(40) if number not in (8, 20)
    ]
    assert isinstance(found[8], UnreadableImageError)
    assert found[20] is None
    assert 144 < watched.most <= 400


def test_no_more_files_are_read_than_are_asked_for(paths, monkeypatch):
    watched = Watched(monkeypatch)
    ahead = read_ahead(paths, files=5, pixels=10_000, largest=9_000, readers=4)
    next(ahead)
    time.sleep(0.3)
    assert len(watched.read) <= 5
    ahead.close()


@pytest.mark.timeout(60)
def test_the_threads_end_with_the_reading(paths):
    before = threading.active_count()
    ahead = read_ahead(paths, files=20, pixels=100, largest=90, readers=4)  # most of them wait for room
    next(ahead)
    ahead.close()
    assert threading.active_count() == before


def test_an_error_that_is_no_files_fault_comes_through(paths, monkeypatch):
    def fail(path):
        raise MemoryError

    monkeypatch.setattr(images, "open_image", fail)
    with pytest.raises(MemoryError):
        list(read_ahead(paths, files=5, pixels=10_000, largest=9_000, readers=2))


def test_there_is_a_reader():
    assert 1 <= reader_count() <= 16
