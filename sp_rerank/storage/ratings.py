"""A score written beside a picture where image browsers look for ratings: XMP, in the file or in FILE.xmp.

Knows the containers of PNG and JPEG and one XMP packet. No pixel is decoded or encoded again: the file's other bytes
stay as they are. Knows no scorer and no order. Sources:

- XMP specification, part 1 (the packet, `xmp:Rating`) and part 3 (where PNG and JPEG hold it); a sidecar is
  FILE.EXT.xmp, as darktable and digiKam name it
- PNG 1.2, 4.2.3 (iTXt, tEXt); JPEG: ITU T.81, annex B
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from sp_rerank.errors import StorageError
from sp_rerank.storage import atomic

XMP = "http://ns.adobe.com/xap/1.0/"
OURS = "https://sp-rerank.invalid/xmp/1.0/"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
META = "adobe:ns:meta/"
SCORE_KEY = "sp_rerank_score"
"""Of the PNG text that holds the score for tools that read no XMP."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_XMP = b"XML:com.adobe.xmp\0"
_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_MAX_SEGMENT = 65_533  # bytes of a JPEG segment behind its length

for _prefix, _space in (("x", META), ("rdf", RDF), ("xmp", XMP), ("sprerank", OURS)):
    ElementTree.register_namespace(_prefix, _space)


@dataclass(frozen=True, slots=True)
class Rating:
    """What is written of an image.

    Attributes:
        stars: 1 to 5, the `xmp:Rating` that browsers show and sort by.
        score: In the scorer's own scale.
        scorer: Its name.
        rank: Among the images that were ranked; 1 = best.
        of: How many these were.
    """

    stars: int
    score: float
    scorer: str
    rank: int
    of: int

    @property
    def properties(self) -> dict[str, str]:
        """XMP properties by their qualified names."""
        return {
            f"{{{XMP}}}Rating": str(self.stars),
            f"{{{OURS}}}score": f"{self.score:.6g}",
            f"{{{OURS}}}scorer": self.scorer,
            f"{{{OURS}}}rank": f"{self.rank}/{self.of}",
        }


def stars_of(rank: int, of: int) -> int:
    """5 for the best fifth of the images, 1 for the last."""
    return 5 - 5 * (rank - 1) // of


def write_rating(path: Path, rating: Rating) -> Path:
    """Put a rating into a PNG or JPEG file, or into FILE.xmp beside one of another format; an earlier one is replaced.

    The file is replaced as a whole or not at all, keeps its permissions, and differs in this metadata alone. Of a link
    the file that it leads to is written.

    Returns:
        The file that was written.

    Raises:
        StorageError: If the file is damaged, holds XMP that is damaged, or cannot be written. It is then as it was.
    """
    path = path.resolve()
    with atomic.storage_errors(path):
        content, mode = path.read_bytes(), path.stat().st_mode
    try:
        if content.startswith(_PNG):
            new = _png(content, rating)
        elif content.startswith(b"\xff\xd8"):
            new = _jpeg(content, rating)
        else:
            return _write_sidecar(path, rating)
    except (ValueError, struct.error, IndexError, zlib.error, ElementTree.ParseError) as error:
        raise StorageError(f"{path}: no rating can be written into it: {error}; the file is as it was") from error
    atomic.write(path, new)
    with atomic.storage_errors(path):
        path.chmod(mode)
    return path


def _write_sidecar(path: Path, rating: Rating) -> Path:
    file = path.with_name(f"{path.name}.xmp")
    try:
        with atomic.storage_errors(file):
            before = file.read_bytes() if file.is_file() else None
        packet = _packet(before, rating)
    except (ValueError, ElementTree.ParseError) as error:
        raise StorageError(f"{file}: its XMP is damaged: {error}; remove it, or leave it as it is") from error
    atomic.write(file, packet)
    return file


def _png(content: bytes, rating: Rating) -> bytes:
    """A PNG file with the rating before its first pixels."""
    kept: list[bytes] = []
    packet, place = None, None
    for kind, data, raw in _chunks(content):
        if kind == b"iTXt" and data.startswith(_PNG_XMP):
            packet = _itxt_text(data)
            continue
        if kind in (b"tEXt", b"iTXt", b"zTXt") and data.split(b"\0", 1)[0] == SCORE_KEY.encode():
            continue
        if kind == b"IDAT" and place is None:
            place = len(kept)
        kept.append(raw)
    if place is None:
        raise ValueError("a PNG file without pixels")
    xmp = _chunk(b"iTXt", _PNG_XMP + b"\0\0\0\0" + _packet(packet, rating))
    line = f"{rating.score:.6g} {rating.scorer}, rank {rating.rank} of {rating.of}"
    text = _chunk(b"iTXt", SCORE_KEY.encode() + b"\0\0\0\0\0" + line.encode())
    return b"".join([_PNG, *kept[:place], xmp, text, *kept[place:]])


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(kind, data, whole chunk) of a PNG file; last, under an empty kind, what stands behind its end."""
    at, kind = len(_PNG), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length
        if end > len(content):
            raise ValueError("the PNG file is cut short")
        data = content[at + 8 : end - 4]
        if struct.unpack_from(">I", content, end - 4)[0] != zlib.crc32(kind + data):
            raise ValueError(f"the checksum of a {kind.decode('latin-1')} chunk is wrong")
        yield kind, data, content[at:end]
        at = end
    yield b"", b"", content[at:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _itxt_text(data: bytes) -> bytes:
    """The text of an iTXt chunk: keyword, two flags, language, translated keyword, text."""
    _, rest = data.split(b"\0", 1)
    compressed, rest = rest[0], rest[2:]
    text = rest.split(b"\0", 2)[2]
    if not compressed:
        return text
    unpack = zlib.decompressobj()
    return unpack.decompress(text, _MAX_SEGMENT)


def _jpeg(content: bytes, rating: Rating) -> bytes:
    """A JPEG file with the rating behind its APP0 and EXIF segments."""
    head: list[bytes] = []
    packet, at = None, 2
    while content[at] == 0xFF and 0xE0 <= content[at + 1] <= 0xEF:
        (length,) = struct.unpack_from(">H", content, at + 2)
        segment = content[at : at + 2 + length]
        if len(segment) < 2 + length:
            raise ValueError("the JPEG file is cut short")
        if segment[4:].startswith(_JPEG_XMP):
            packet = segment[4 + len(_JPEG_XMP) :]
        else:
            head.append(segment)
        at += 2 + length
    if content[at] != 0xFF:
        raise ValueError("the segments of the JPEG file do not follow each other")
    data = _JPEG_XMP + _packet(packet, rating)
    if len(data) > _MAX_SEGMENT:
        raise ValueError("its XMP has no room for more")
    place = sum(segment[1] == 0xE0 or segment[4:].startswith(b"Exif\0") for segment in head)
    xmp = b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data
    return b"".join([content[:2], *head[:place], xmp, *head[place:], content[at:]])


def _packet(before: bytes | None, rating: Rating) -> bytes:
    """The XMP of a file with the rating in it: what other tools wrote stays.

    Raises:
        ValueError, ElementTree.ParseError: If what is there cannot be read.
    """
    root = ElementTree.Element(f"{{{META}}}xmpmeta") if before is None else _parsed(before)
    rdf = root if root.tag == f"{{{RDF}}}RDF" else root.find(f"{{{RDF}}}RDF")
    rdf = ElementTree.SubElement(root, f"{{{RDF}}}RDF") if rdf is None else rdf
    for description in rdf.findall(f"{{{RDF}}}Description"):
        for name in rating.properties:
            description.attrib.pop(name, None)
            for element in description.findall(name):
                description.remove(element)
    first = rdf.find(f"{{{RDF}}}Description")
    if first is None:
        first = ElementTree.SubElement(rdf, f"{{{RDF}}}Description", {f"{{{RDF}}}about": ""})
    first.attrib.update({name: _xml_text(value) for name, value in rating.properties.items()})
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n{body}\n<?xpacket end="w"?>'.encode()


def _parsed(packet: bytes) -> ElementTree.Element:
    if b"<!" in packet.replace(b"<!--", b"").replace(b"<![CDATA[", b""):
        raise ValueError("its XMP declares entities")
    return ElementTree.fromstring(packet.strip(b" \t\r\n\0"))


def _xml_text(value: str) -> str:
    """Text without the control characters that XML cannot hold."""
    return "".join(sign if sign.isprintable() else " " for sign in value)
