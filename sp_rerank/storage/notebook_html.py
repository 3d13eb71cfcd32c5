"""Pictures with captions as HTML for a notebook: escaped, bounded in size, nothing to be fetched. Knows no score."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from sp_rerank.storage.images import to_webp

if TYPE_CHECKING:
    from PIL import Image

SIDE = 192  # pixels of a thumbnail: some 6 kB
MOST = 24  # thumbnails
LONGEST = 200  # characters of a title or caption


def pictures_html(title: str, pictures: Sequence[tuple[Image.Image, str]]) -> str:
    """A title and thumbnails, each above its caption; what is beyond MOST is counted in words.

    Args:
        title: Any text.
        pictures: RGB images with their captions, the first first.
    """
    figures = "".join(_figure(image, caption) for image, caption in pictures[:MOST])
    rest = len(pictures) - MOST
    more = f"<div>and {rest} more</div>" if rest > 0 else ""
    return (
        f'<div><div style="margin-bottom:6px">{_text(title)}</div>'
        f'<div style="display:flex;flex-wrap:wrap;gap:8px">{figures}</div>{more}</div>'
    )


def _figure(image: Image.Image, caption: str) -> str:
    data, words = b64encode(to_webp(image, SIDE)).decode(), _text(caption)
    return (
        f'<figure style="margin:0;max-width:{SIDE}px"><img alt="{words}" src="data:image/webp;base64,{data}" '
        f'style="display:block;max-width:100%"><figcaption style="font-size:smaller">{words}</figcaption></figure>'
    )


def _text(text: str) -> str:
    return escape(text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}\u2026")
