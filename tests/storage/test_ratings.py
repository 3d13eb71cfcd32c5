"""Ratings in image files: read by others, pixels and all other bytes as they were, nothing damaged."""

from __future__ import annotations

import io
import stat
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from support.pictures import picture

from sp_rerank.errors import StorageError
from sp_rerank.storage import atomic, images
from sp_rerank.storage.embedded_prompts import embedded_prompt
from sp_rerank.storage.ratings import OURS, RDF, XMP, Rating, stars_of, write_rating

RATING = Rating(stars=4, score=0.28125, scorer='hps-v2.1@3f2a <&">', rank=2, of=9)
PACKET = (
    '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    f'<rdf:RDF xmlns:rdf="{RDF}"><rdf:Description rdf:about="" xmlns:xmp="{XMP}" xmp:Rating="1" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="image/png"><xmp:Rating>2</xmp:Rating>'
    "<dc:subject><rdf:Bag><rdf:li>beach</rdf:li></rdf:Bag></dc:subject></rdf:Description></rdf:RDF></x:xmpmeta>"
    '<?xpacket end="w"?>'
)


def saved(path: Path, **options: object) -> Path:
    picture("photo", 33, 21).save(path, **options)
    return path


def properties(packet: bytes) -> dict[str, str]:
    """Of the one description in a packet, attributes and simple elements."""
    (description,) = ElementTree.fromstring(packet).iter(f"{{{RDF}}}Description")
    return {**description.attrib, **{element.tag: element.text or "" for element in description}}


def xmp_of(path: Path) -> bytes:
    with Image.open(path) as image:
        found = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    return found.encode() if isinstance(found, str) else found


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_rating_is_read_by_others_and_the_pixels_stay(tmp_path, suffix):
    path = saved(tmp_path / f"a.{suffix}")
    before = images.open_image(path).tobytes()
    for rating in (RATING, Rating(1, -3.5, "b", 9, 9)):  # the second replaces the first
        assert write_rating(path, rating) == path
        found = properties(xmp_of(path))
        assert found[f"{{{XMP}}}Rating"] == str(rating.stars)
        assert float(found[f"{{{OURS}}}score"]) == rating.score
        assert found[f"{{{OURS}}}scorer"] == rating.scorer
        assert found[f"{{{OURS}}}rank"] == f"{rating.rank}/{rating.of}"
        assert images.open_image(path).tobytes() == before
    assert path.read_bytes().count(b"adobe:ns:meta/") == 1
    assert path.read_bytes().count(b"sp_rerank_score") == (suffix == "png")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_other_bytes_of_a_file_stay(tmp_path):
    """PNG chunks of any kind, bytes behind the end; JPEG segments of any kind."""
    for path in (tmp_path / "a.png", tmp_path / "a.jpg"):
        exif = Image.Exif()
        exif[0x010E] = "a description"
        saved(path, exif=exif, dpi=(72, 72), icc_profile=b"profile" * 9)
        path.write_bytes(path.read_bytes() + b"behind the end")
        before = path.read_bytes()
        write_rating(path, RATING)
        after = path.read_bytes()
        start = next(i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b)
        added = len(after) - len(before)
        assert added > 0
        cuts = range(max(0, start - 8), start + 1)  # where the addition begins with the bytes that follow it
        assert any(before == after[:cut] + after[cut + added :] for cut in cuts)


def test_a_prompt_in_the_file_stays(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(images.encode(picture("noise", 8, 8), parameters="a lemon", record={"prompt": "a lemon"}))
    write_rating(path, RATING)
    assert embedded_prompt(path) == "a lemon"
    assert images.read_record(path) == {"prompt": "a lemon"}
    with Image.open(path) as image:
        assert image.info["sp_rerank_score"] == f"0.28125 {RATING.scorer}, rank 2 of 9"


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_what_others_wrote_into_the_packet_stays(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", PACKET, zip=True)
        saved(path, pnginfo=info)
    else:
        saved(path, xmp=PACKET.encode())
    write_rating(path, RATING)
    found = xmp_of(path)
    assert properties(found)[f"{{{XMP}}}Rating"] == "4"
    assert found.count(b"Rating") == 1
    assert b"beach" in found
    assert b"image/png" in found


@pytest.mark.parametrize("suffix", ["webp", "bmp", "gif", "tiff"])
def test_other_formats_get_a_file_beside_them(tmp_path, suffix):
    path = saved(tmp_path / f"a.{suffix}")
    before = path.read_bytes()
    assert write_rating(path, RATING) == tmp_path / f"a.{suffix}.xmp"
    assert path.read_bytes() == before
    write_rating(path, RATING)
    assert properties((tmp_path / f"a.{suffix}.xmp").read_bytes())[f"{{{XMP}}}Rating"] == "4"


def damaged(path: Path) -> list[bytes]:
    png, jpg = io.BytesIO(), io.BytesIO()
    picture("photo", 33, 21).save(png, "PNG")
    picture("photo", 33, 21).save(jpg, "JPEG", xmp=b"<x:xmpmeta")
    bomb = PACKET.replace("?><x:", '?><!DOCTYPE x [<!ENTITY a "b">]><x:').encode()
    entities = io.BytesIO()
    picture("photo", 33, 21).save(entities, "JPEG", xmp=bomb)
    flipped = bytearray(png.getvalue())
    flipped[-20] ^= 1
    return [png.getvalue()[:-30], bytes(flipped), png.getvalue()[:33], jpg.getvalue(), entities.getvalue(), b"\xff\xd8"]


@pytest.mark.parametrize("case", range(6))
def test_a_damaged_file_is_left_as_it_was(tmp_path, case):
    path = tmp_path / "a"
    content = damaged(path)[case]
    path.write_bytes(content)
    with pytest.raises(StorageError, match="the file is as it was"):
        write_rating(path, RATING)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_original(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png")
    before = path.read_bytes()

    def full(file, data):
        file.write(data[:50])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "_write_synced", full)
    with pytest.raises(StorageError, match="No space left"):
        write_rating(path, RATING)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_and_links_stay(tmp_path):
    path = saved(tmp_path / "a.png")
    path.chmod(0o640)
    link = tmp_path / "link.png"
    link.symlink_to(path)
    assert write_rating(link, RATING) == path
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_stars_are_fifths():
    assert [stars_of(rank, 10) for rank in range(1, 11)] == [5, 5, 4, 4, 3, 3, 2, 2, 1, 1]
    assert stars_of(1, 1) == 5
    assert [stars_of(rank, 3) for rank in (1, 2, 3)] == [5, 4, 2]
