"""Groups that cannot be, parts that share no prompt, and images that cannot be read are skipped."""

import io
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from struct import pack

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.preference_files import encoded, put_json

from sp_rerank.errors import NothingUsableError, StorageError, UnreadableImageError, UsageError
from sp_rerank.train.preferences import (
    MOST_SKIPPED,
    ImageReader,
    ImageSource,
    Pair,
    PreferenceGroup,
    hold_out,
    split_groups,
)
from sp_rerank.train.readers import read_preferences


@pytest.mark.parametrize("changes", [{"pairs": (Pair(0, 2, 1),)}, {"pairs": (Pair(-1, 1, 1),)}, {"ranks": (1.0,)}])
def test_a_group_that_cannot_be_is_refused(changes):
    sources = (ImageSource(Path("a")), ImageSource(Path("b")))
    with pytest.raises(ValueError, match="expected"):
        PreferenceGroup(**({"prompt": "x", "images": sources, "pairs": ()} | changes))


def groups_of(prompts):
    return [PreferenceGroup(prompt, (), ()) for prompt in prompts]


@given(st.lists(st.text(max_size=4), max_size=30), st.integers(0, 5))
@settings(max_examples=50)
def test_parts_share_no_prompt_and_lose_none(prompts, seed):
    groups = groups_of(prompts)
    parts = split_groups(groups, (0.5, 0.3, 0.2), seed)
    assert sorted(group.prompt for part in parts for group in part) == sorted(prompts)
    keys = [{" ".join(group.prompt.casefold().split()) for group in part} for part in parts]
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
    assert split_groups(groups[::-1], (0.5, 0.3, 0.2), seed) == tuple(part[::-1] for part in parts)


@given(st.sets(st.integers(), min_size=2, max_size=12), st.integers(0, 50), st.floats(0.001, 0.5))
def test_no_part_is_empty_where_there_is_a_prompt_for_each(prompts, seed, share):
    held_out, rest = split_groups(groups_of(map(str, prompts)), (share, 1 - share), seed)
    assert held_out
    assert rest
    if len(prompts) > 2:
        assert all(split_groups(groups_of(map(str, prompts)), (share, 0.4, 0.6 - share), seed))


def strict(prompt, label=1.0):
    sources = (ImageSource(Path("a")), ImageSource(Path("b")))
    return PreferenceGroup(prompt, sources, (Pair(0, 1, label),))


@pytest.mark.parametrize("seed", range(20))
def test_of_six_prompts_one_is_held_out_that_has_a_better_image(seed):
    ties = [strict(f"tie {i}", 0.5) for i in range(40)]
    deciding = [strict(f"prompt {i}") for i in range(6)]
    held_out, learning = hold_out([*ties, *deciding], 0.1, seed)
    assert 1 <= len(held_out) <= 5
    assert not set(held_out) & set(ties)
    assert sorted(group.prompt for group in held_out + learning) == sorted(g.prompt for g in (*ties, *deciding))


def test_a_tie_of_a_held_out_prompt_is_held_out_with_it():
    groups = [strict("A"), strict("b"), strict("a", 0.5), strict("B ", 0.5)]
    held_out, learning = hold_out(groups, 0.5, 0)
    assert {group.prompt.casefold().strip() for group in held_out} != {g.prompt.casefold().strip() for g in learning}
    assert not {g.prompt.casefold().strip() for g in held_out} & {g.prompt.casefold().strip() for g in learning}


def test_where_one_prompt_decides_nothing_is_held_out():
    groups = [strict("a"), strict("b", 0.5), strict("A", 0.0)]
    assert hold_out(groups, 0.5, 0) == ([], groups)


def test_shares_are_kept_and_seeds_differ():
    groups = groups_of([str(i) for i in range(4000)])
    parts = split_groups(groups, (0.9, 0.1), 0)
    assert len(parts[1]) == pytest.approx(400, abs=60)
    assert split_groups(groups, (0.9, 0.1), 1) != parts
    assert split_groups(groups, (1,), 0) == (groups,)
    for seed in range(20):
        assert [] in split_groups(groups_of(["A  Cat", "a cat", " a CAT\n"]), (0.5, 0.5), seed)
    for shares in [(), (0.5, 0.4), (1.5, -0.5), (0.0, 1.0), (float("nan"), 1.0)]:
        with pytest.raises(UsageError, match="add up to 1"):
            split_groups(groups, shares, 0)


# Images


def test_a_damaged_member_or_cell_is_unreadable_and_a_damaged_archive_is_said(tmp_path):
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("cut.png", encoded(file_format="JPEG")[:200])
    for source in [
        ImageSource(archive, "cut.png"),
        ImageSource(archive, "absent.png"),
        ImageSource(tmp_path / "x.parquet", "row 1 jpg_0", b""),
        ImageSource(tmp_path / "x.parquet", "row 2 jpg_0", b"<svg/>"),
        ImageSource(tmp_path / "absent.png"),
    ]:
        with pytest.raises(UnreadableImageError) as error:
            source.open()
        assert source.name in str(error.value)
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK")
    data = put_json(
        tmp_path / "x.json", [{"prompt": "x", "generations": ["broken/a.png", "broken/b.png"], "ranking": [1, 2]}]
    )
    with pytest.raises(StorageError, match=r"broken.zip cannot be read"):
        list(read_preferences(data))


def black_png(side):
    """A valid black-and-white PNG file of side x side pixels."""
    packer, row = zlib.compressobj(1), bytes(1 + (side + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    chunks = [(b"IHDR", pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        pack(">I", len(body)) + kind + body + pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


PLANTED = {
    "truncated": lambda: encoded(file_format="JPEG")[:200],
    "empty": lambda: b"",
    "text": lambda: b"not an image",
    "bomb": lambda: black_png(30_000),
    "cmyk": lambda: encoded(mode="CMYK", file_format="JPEG"),
    "palette and alpha": lambda: encoded(mode="P", transparency=0),
    "16 bits": lambda: encoded(mode="I;16"),
}
BAD = ["truncated", "empty", "text", "bomb"]

READ_ALL = """
import sys
from pathlib import Path
from sp_rerank.train.preferences import ImageReader, ImageSource

def peak():  # in MB; getrusage would give what was inherited from the parent
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

sources = [ImageSource(path) for path in sorted(Path(sys.argv[1]).iterdir())]
reader = ImageReader(len(sources))
ImageSource(Path(sys.argv[1]) / "0.png").open()  # what Pillow needs in any case
before = peak()
read = sum(reader.read(source) is not None for source in sources)
print(len(sources), read, peak() - before, "torch" in sys.modules, *map(lambda name: Path(name).name, reader.skipped))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_of_a_thousand_images_exactly_the_bad_ones_are_skipped(tmp_path):
    good = encoded()
    for number in range(993):
        (tmp_path / f"{number}.png").write_bytes(good)
    for name, make in PLANTED.items():
        (tmp_path / name.replace(" ", "-")).write_bytes(make())
    done = subprocess.run(
        # -P: not the checkout that the tests may be started in
        [sys.executable, "-P", "-c", READ_ALL, str(tmp_path)], capture_output=True, text=True, check=True,
    )  # fmt: skip
    n, read, rise, torch, *skipped = done.stdout.split()
    assert (n, read, torch) == ("1000", "996", "False")
    assert sorted(skipped) == sorted(BAD)
    assert float(rise) < 50
    assert done.stderr.count("skipped: ") == len(BAD)


def test_more_than_one_in_a_hundred_stops_training(tmp_path):
    source = [ImageSource(tmp_path / f"absent {number}.png") for number in range(5)]
    reader = ImageReader(400)
    assert [reader.read(image) for image in (*source[:4], *source[:4])] == [None] * 8
    assert len(reader.skipped) == MOST_SKIPPED * 400
    with pytest.raises(NothingUsableError, match=r"5 of 400 images cannot be read, 1% at most"):
        reader.read(source[4])
    patient = ImageReader()
    assert [patient.read(image) for image in source] == [None] * 5


def test_a_cell_is_read_as_carefully_as_a_file(tmp_path):
    rng = np.random.default_rng(0)
    turned = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    turned.save(file, "PNG", exif=exif)
    (tmp_path / "a.png").write_bytes(file.getvalue())
    inside = ImageSource(tmp_path / "t", "row 1", file.getvalue()).open()
    assert inside.size == (4, 6)
    assert np.array_equal(inside, ImageSource(tmp_path / "a.png").open())
    with pytest.raises(UnreadableImageError, match="64 megapixels"):
        ImageSource(tmp_path / "t", "row 1", black_png(9000)).open()
