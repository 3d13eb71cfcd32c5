"""Image files: other people's read with care, ours written with their metadata.

Knows Pillow, formats and PNG text. Knows nothing of runs, prompts' meaning or scores.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from sp_rerank.errors import UnreadableImageError

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""By Pillow's names; its other readers are not let near a file of unknown origin."""

MAX_PIXELS = 64_000_000
"""Of an image that is read; above it a small file can hold gigabytes."""

# What is computed from a band takes many times the memory of its pixels.
_PIXELS_OF_A_BAND = 2_000_000

WEBP_QUALITY = 82  # at 384 pixels some 20 kB, where a PNG of 1,024 pixels has 2 MB

RECORD_KEY = "sp_rerank"
PARAMETERS_KEY = "parameters"


def open_image(path: str | Path) -> Image.Image:
    """Read an image file of any origin, the first frame of several, as `to_rgb` does.

    Raises:
        UnreadableImageError: naming the file and why: another format, damaged, above 64 megapixels by its header
            (nothing is decoded then), or pixels without a defined white (32-bit).
    """
    return read_image(lambda: path, str(path))


def read_image(source: Callable[[], str | Path | BinaryIO], name: str) -> Image.Image:
    """As `open_image`, of a file that is in an archive or a table.

    Args:
        source: gives a path or an open file; what it raises makes the image unreadable.
        name: for messages.

    Raises:
        UnreadableImageError: as `open_image`.
    """
    try:
        with Image.open(source(), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return _read(image, own=True)
    except Image.UnidentifiedImageError as error:
        raise _unreadable(name, f"no {', '.join(FORMATS)} file") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _unreadable(name, f"more than {MAX_PIXELS / 1e6:g} megapixels") from error
    # Pillow's decoders raise whatever they trip over in a damaged file: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise _unreadable(name, f"{error}" or type(error).__name__) from error


def pixels_of(file: bytes | Path) -> int:
    """How many pixels an image file holds by its header; 0 for what is no image."""
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image:
            return image.width * image.height
    except Exception:  # `read_image` says what is wrong with it
        return 0


def encode(image: Image.Image, *, parameters: str, record: Mapping[str, Any]) -> bytes:
    """A PNG file of an RGB image with its metadata; equal arguments give equal bytes.

    Args:
        image: RGB.
        parameters: AUTOMATIC1111's text, see `a1111_parameters`.
        record: ours, what JSON can hold; read again with `read_record`.

    Raises:
        ValueError: if the image is not RGB or the record not for JSON.
    """
    if image.mode != "RGB":
        raise ValueError(f"an RGB image was expected, not {image.mode}")
    info = PngInfo()
    info.add_text(PARAMETERS_KEY, _png_text(parameters))
    info.add_text(RECORD_KEY, json.dumps(record, allow_nan=False))
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()


def to_webp(image: Image.Image, side: int, quality: int = WEBP_QUALITY) -> bytes:
    """An image as WebP, no larger than a side in pixels; smaller ones keep their size."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=quality, method=4)
    return file.getvalue()


def to_bytes(batch: Tensor) -> Tensor:
    """(n, 3, H, W) float in [0, 1] to uint8 on the same device, rounded as diffusers rounds; not finite: black."""
    return batch.detach().float().nan_to_num(0, 0, 0).clamp_(0, 1).mul_(255).round_().byte()


def are_finite(batch: Tensor) -> Tensor:
    """(n, ...) floats to (n,) booleans: which of them hold neither a NaN nor an infinity; several times `isfinite`."""
    return batch.detach().flatten(1).mul(0).sum(dim=1) == 0


def to_images(batch: Tensor) -> list[Image.Image]:
    """(n, 3, H, W) float in [0, 1] to RGB images, as `to_bytes` does."""
    return [Image.fromarray(array) for array in to_bytes(batch).permute(0, 2, 3, 1).contiguous().cpu().numpy()]


def amend_record(png: bytes, more: Mapping[str, Any]) -> bytes:
    """The same picture and metadata as `encode` wrote, with more in the record."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        record = {**json.loads(image.info[RECORD_KEY]), **more}
        return encode(image.convert("RGB"), parameters=image.info[PARAMETERS_KEY], record=record)


def has_record(png: bytes) -> bool:
    """Whether a PNG file holds a record that `encode` wrote; False for what is no PNG file."""
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            return RECORD_KEY in image.info
    except UnidentifiedImageError:
        return False


def read_record(path: str | Path) -> dict[str, Any] | None:
    """The record that `encode` put into a PNG file; None where there is none. No pixel is decoded.

    Raises:
        UnreadableImageError: if it is not a PNG file or its record is damaged.
    """
    path = Path(path)
    try:
        with Image.open(path, formats=("PNG",)) as image:
            text = image.info.get(RECORD_KEY)
        record = None if text is None else json.loads(text)
    except Exception as error:
        raise _unreadable(str(path), f"no PNG file with a record: {error}") from error
    if record is not None and not isinstance(record, dict):
        raise _unreadable(str(path), f"its {RECORD_KEY} record is no JSON object")
    return record


def a1111_parameters(
    *,
    prompt: str,
    negative_prompt: str,
    steps: int,
    sampler: str,
    guidance_scale: float,
    seed: int,
    size: tuple[int, int],
    model: str,
) -> str:
    """Generation parameters as text that other tools read from a PNG file.

    The layout is that of `create_infotext` in AUTOMATIC1111/stable-diffusion-webui (modules/processing.py): the prompt,
    which may have several lines, the negative prompt where there is one, and one last line of settings.

    Args:
        prompt: as given.
        negative_prompt: as given, empty for none.
        steps: number of denoising steps.
        sampler: for example "PNDM".
        guidance_scale: of classifier-free guidance.
        seed: of the initial noise.
        size: (width, height) in pixels.
        model: name or path.
    """
    settings = {
        "Steps": str(steps),
        "Sampler": sampler,
        "CFG scale": f"{guidance_scale:g}",
        "Seed": str(seed),
        "Size": f"{size[0]}x{size[1]}",
        "Model": model,
    }
    last = ", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items())
    negative = f"\nNegative prompt: {negative_prompt}" if negative_prompt else ""
    return f"{prompt}{negative}\n{last}"


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture that every scorer is shown of an image: upright, RGB, transparency on white; new, without metadata.

    - The orientation in the EXIF data is applied; EXIF data that is damaged, or says none, changes nothing.
    - Transparent pixels, also of palettes, lie on white.
    - 16 bits of gray are scaled to 8 (Pillow's own conversion clips them to white), in either order of the bytes.
    - Color profiles are ignored: CMYK is Pillow's plain conversion.

    Args:
        image: of any mode but 32-bit ones; it is not changed.

    Raises:
        ValueError: if its pixels are of 32 bits and have no defined white.
    """
    return _read(image, own=False)


def _read(image: Image.Image, *, own: bool) -> Image.Image:
    """As `to_rgb`; an image of one's own may give its pixels away, so that they are not in memory twice."""
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}: 32-bit pixels have no defined white; save it with 8 bits")
    _load(image)
    flat = _on_white(image, own)
    turn = _TURNS.get(_orientation(image))  # what is still to be done, for some files are turned when they are loaded
    upright = flat if turn is None else flat.transpose(turn)
    upright.info = {}  # its EXIF data would turn it again when it is read again
    return upright


def _load(image: Image.Image) -> None:
    """Decode a file without mapping it: Pillow maps a TIFF file that is to be turned with its sides exchanged."""
    if not isinstance(image, ImageFile.ImageFile):
        image.load()
        return
    name, image.filename = image.filename, ""
    try:
        image.load()
    finally:
        image.filename = name


def seen_rgb(image: Image.Image) -> Image.Image:
    """The same pixels as `to_rgb` gives; the image itself, uncopied, where `to_rgb` made it. Not to be changed."""
    made_here = type(image) is Image.Image and image.mode == "RGB" and not image.info
    return image if made_here else to_rgb(image)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each EXIF orientation upright."""


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow's parser raises whatever it trips over; the pixels are whole all the same
        return 1
    return value if isinstance(value, int) else 1


def bands(image: Image.Image) -> Iterator[tuple[Image.Image, int]]:
    """An image from top to bottom in bands of a few megapixels, each with the row at which it begins."""
    rows = max(1, _PIXELS_OF_A_BAND // max(1, image.width))
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height))), top


def _on_white(image: Image.Image, own: bool) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image._new(image.im) if own else image.copy()  # the one way to another object with the same pixels
    flat = Image.new("RGB", image.size)
    for band, top in bands(image):
        flat.paste(_band_on_white(band), (0, top))
    return flat


def _band_on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _eight_bits(image)
    return _composited(image) if image.has_transparency_data else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Rounded, 65535 -> 255; the value that a PNG file calls transparent is white."""
    wide = np.asarray(image).astype(np.uint32)
    gray = ((wide + 128) // 257).astype(np.uint8)
    gray[wide == image.info.get("transparency", -1)] = 255
    return Image.fromarray(gray).convert("RGB")


def _composited(image: Image.Image) -> Image.Image:
    straight = image.convert("LA") if image.mode == "La" else image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, straight.convert("RGBA")).convert("RGB")


def _unreadable(name: str, why: str) -> UnreadableImageError:
    return UnreadableImageError(f"{name}: cannot be read as an image: {' '.join(why.split())}")


def _png_text(text: str) -> str:
    """Text that a PNG chunk can hold: no NUL, and nothing that UTF-8 has not."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode()


def _quoted(value: str) -> str:
    """A setting as AUTOMATIC1111's `quote` writes it: as JSON where it would break the line apart."""
    return json.dumps(value, ensure_ascii=False) if any(sign in value for sign in ",\n:") else value
