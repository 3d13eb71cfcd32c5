"""Draws scenes of the mini world: a description in, an image and its truth out.

Knows drawings, backgrounds and where things stand; knows nothing of models. An image is (64, 64, 3) uint8. A thousand
scenes a second and core: drawings are rasterized once a size and style, then only pasted.
"""

from __future__ import annotations

import functools
import io
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from sp_rerank.train.mini.grammar import BACKGROUNDS, Description, draw_description

SIDE = 64
STYLES = ("noto", "fluent-emoji-flat", "fluent-emoji", "fxemoji")
VARIANTS = 24  # of each background
MASTER = 192  # pixels to which a drawing is rasterized before it is scaled down
SIZES = {"one": (36, 46), "worn": (36, 42), "two": (25, 30), "three": (19, 23), "stacked": (25, 29)}


@dataclass(frozen=True, slots=True)
class Placed:
    """One object in a scene; `box` is (left, top, right, bottom) in pixels, right and bottom excluded."""

    name: str
    style: str
    box: tuple[int, int, int, int]
    accessory: str | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """An image (64, 64, 3) uint8, the description it was drawn from, and what is really there."""

    image: np.ndarray
    description: Description
    objects: tuple[Placed, ...]
    background: str


@functools.cache
def _drawings(style: str) -> dict[str, str]:
    return json.loads((Path(__file__).parent / "drawings" / f"{style}.json").read_text(encoding="utf-8"))["drawings"]


@functools.cache
def _master(style: str, name: str) -> Image.Image:
    """The drawing cut to its visible part, at most MASTER pixels a side, premultiplied."""
    import resvg_py  # of the extra `train`

    png = resvg_py.svg_to_bytes(svg_string=_drawings(style)[name], width=MASTER, height=MASTER)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    image = image.crop(image.getchannel("A").point([0] * 17 + [255] * 239).getbbox())
    return image.convert("RGBa")


@functools.cache
def drawing(style: str, name: str, size: int) -> np.ndarray:
    """A drawing whose longer side is `size` pixels: (h, w, 4) float32 in [0, 1], premultiplied."""
    master = _master(style, name)
    scale = size / max(master.size)
    width, height = (max(1, round(side * scale)) for side in master.size)
    return np.asarray(master.resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32) / 255


def styles_of(name: str) -> list[str]:
    """The styles in which an object is drawn."""
    return [style for style in STYLES if name in _drawings(style)]


def _gradient(top: ArrayLike, bottom: ArrayLike, height: int = SIDE) -> np.ndarray:
    mix = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    rows = np.asarray(top, np.float32) * (1 - mix) + np.asarray(bottom, np.float32) * mix
    return np.repeat(rows, SIDE, axis=1)


def _dots(ground: np.ndarray, rng: np.random.Generator, n: int) -> None:
    """Stars or snowflakes of one pixel."""
    ground[rng.integers(0, len(ground), n), rng.integers(0, SIDE, n)] = 245


def _background(kind: str, rng: np.random.Generator) -> np.ndarray:
    shade = rng.uniform(-8, 8, 3)
    if kind in ("white", "pink", "blue"):
        color = {"white": (250, 250, 250), "pink": (250, 176, 202), "blue": (120, 178, 236)}[kind]
        return _gradient(np.add(color, shade / 2), np.add(color, shade / 2))
    horizon = int(rng.integers(24, 40))
    if kind == "night":
        image = _gradient(np.add((12, 14, 48), shade), np.add((44, 40, 96), shade))
        _dots(image, rng, 20)
        return image
    if kind == "sunset":
        image = _gradient(np.add((88, 60, 130), shade), np.add((255, 176, 88), shade))
        y, x = np.mgrid[:SIDE, :SIDE]
        center = rng.integers(8, SIDE - 8)
        image[(x - center) ** 2 + (y - horizon - 8) ** 2 < 81] = (255, 226, 150)
        image[horizon + 8 :] = _gradient((150, 70, 96), (70, 36, 80), SIDE - horizon - 8)
        return image
    sky = {"beach": (150, 214, 250), "grass": (160, 216, 255), "snow": (186, 204, 222)}[kind]
    image = _gradient(np.add(sky, shade), np.add(sky, shade) * 0.5 + 122)
    below = SIDE - horizon
    if kind == "beach":
        sea = int(rng.integers(6, 12))
        image[horizon:] = _gradient((246, 222, 166), (228, 190, 124), below)
        image[horizon : horizon + sea] = _gradient((38, 140, 196), (84, 196, 214), sea)
    elif kind == "grass":
        image[horizon:] = _gradient((126, 196, 76), (62, 140, 50), below)
    else:
        image[horizon:] = _gradient((244, 248, 252), (222, 232, 244), below)
        _dots(image[:horizon], rng, 24)
    return image


@functools.cache
def backgrounds(kind: str) -> list[np.ndarray]:
    """VARIANTS pictures of a background, (64, 64, 3) float32 in [0, 1]."""
    rng = np.random.default_rng(list(BACKGROUNDS).index(kind))
    return [_background(kind, rng).clip(0, 255) / 255 for _ in range(VARIANTS)]


def paste(canvas: np.ndarray, sprite: np.ndarray, left: int, top: int) -> None:
    """Put a sprite on the canvas, cut at the edges."""
    height, width = sprite.shape[:2]
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + height, SIDE), min(left + width, SIDE)
    if y0 >= y1 or x0 >= x1:
        return
    part = sprite[y0 - top : y1 - top, x0 - left : x1 - left]
    region = canvas[y0:y1, x0:x1]
    region *= 1 - part[..., 3:]
    region += part[..., :3]


def _spread(rng: random.Random, low: float, high: float) -> int:
    return round(rng.uniform(low, high))


def _centres(description: Description, rng: random.Random) -> list[tuple[float, float]]:
    """Where the objects of a description stand: (x, y) of each center, in pixels."""
    shift = lambda amount: rng.uniform(-amount, amount)  # noqa: E731
    if description.second and description.relation == "above":
        x = SIDE / 2 + shift(8)
        return [(x + shift(4), 16 + shift(1.5)), (x + shift(4), 47 + shift(1.5))]
    if description.second or description.count == 2:
        y = SIDE / 2 + shift(8)
        pair = [(16 + shift(2), y + shift(4)), (48 + shift(2), y + shift(4))]
        swap = description.relation == "right" or (description.relation == "and" and rng.random() < 0.5)
        return pair[::-1] if swap else pair
    if description.count == 3:
        if rng.random() < 0.5:
            y = SIDE / 2 + shift(8)
            return [(x + shift(1), y + shift(3)) for x in (11, 32, 53)]
        return [(32 + shift(3), 17 + shift(2)), (17 + shift(2), 45 + shift(2)), (47 + shift(2), 45 + shift(2))]
    return [(SIDE / 2 + shift(6), SIDE / 2 + shift(4) + (5 if description.accessory in ("crown", "top hat") else 1))]


def _size(description: Description, rng: random.Random) -> int:
    if description.second:
        return _spread(rng, *SIZES["stacked" if description.relation == "above" else "two"])
    if description.count > 1:
        return _spread(rng, *SIZES["two" if description.count == 2 else "three"])
    return _spread(rng, *SIZES["worn" if description.accessory else "one"])


def worn(sprite: np.ndarray, accessory: str, style: str) -> tuple[np.ndarray, int]:
    """A drawing that wears something: sunglasses on its upper half, a crown or a hat on its top.

    Returns:
        The whole, premultiplied, its drawing centered from left to right; and the row at which the drawing begins.
    """
    height, width = sprite.shape[:2]
    if accessory == "sunglasses":
        put = drawing(style, accessory, round(min(width * 0.95, 34)))
        row = round(height * 0.38) - put.shape[0] // 2
    else:
        put = drawing(style, accessory, round(min(max(width, 24) * 0.66, 26)))
        row = -round(put.shape[0] * 0.68)
    top = max(0, -row)
    side = max(0, (put.shape[1] - width + 1) // 2)
    whole = np.zeros((top + max(height, row + put.shape[0]), width + 2 * side, 4), np.float32)
    whole[top : top + height, side : side + width] = sprite
    left = side + (width - put.shape[1]) // 2
    region = whole[top + row : top + row + put.shape[0], left : left + put.shape[1]]
    region *= 1 - put[..., 3:]
    region += put
    return whole, top


def draw_scene(description: Description, rng: random.Random) -> Scene:
    """Draw one scene of a description; styles, sizes, places and an open background come from `rng`.

    Things of one kind share a style, as on an emoji keyboard; the two of a pair do not have to.
    """
    background = description.background or rng.choice(list(BACKGROUNDS))
    canvas = rng.choice(backgrounds(background)).copy()
    names = [description.first] * description.count + ([description.second] if description.second else [])
    style_of = {name: rng.choice(styles_of(name)) for name in names}
    size, placed = _size(description, rng), []
    for name, (x, y) in zip(names, _centres(description, rng), strict=True):
        sprite = drawing(style_of[name], name, size)
        height, width = sprite.shape[:2]
        left, top = round(x - width / 2), round(y - height / 2)
        box = (left, top, left + width, top + height)
        whole, above = worn(sprite, description.accessory, style_of[name]) if description.accessory else (sprite, 0)
        paste(canvas, whole, left - (whole.shape[1] - width) // 2, top - above)
        placed.append(Placed(name, style_of[name], box, description.accessory))
    image = (canvas * 255 + 0.5).clip(0, 255).astype(np.uint8)
    return Scene(image, description, tuple(placed), background)


def draw_scenes(n: int, seed: int, *, held_out: bool = False) -> list[Scene]:
    """n random scenes of a seed, of trained or of held-out combinations."""
    rng = random.Random(f"{seed}-{held_out}")
    return [draw_scene(draw_description(rng, held_out=held_out), rng) for _ in range(n)]
