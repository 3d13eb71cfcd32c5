"""What a picture of the mini world is worth: how near it comes to a scene that could have been drawn for its caption.

For a caption and a picture, the nearest scene is searched among all that the renderer could draw for the caption:
background, and for each object style, size, mirror image and place, with what it wears. Then

    U = 2 S + H / 2 - 6 P_o - 6 P_b

    S    structure term of SSIM (Wang et al. 2004, eq. 10: means over 7x7 pixels, C3 = 4.5e-4, pixels in [0, 1]), the
         mean over the objects of the nearest scene and 3 px around them
    P_o  mean over the same pixels of the absolute difference of colors, at most .4 a pixel
    P_b  the same of all other pixels
    H    sharpness of the same objects: the root mean square of what a 3x3 mean takes away, over that of the scene after
         the embedded model's autoencoder, at most 1

S, P_o and P_b compare after a 3x3 mean, so that the decoder's softness costs nothing; H is what makes any other blur
cost. A missing object, a wrong place, a wrong background, a deformation, a smear: all one distance. Deterministic, and
no network was trained to judge. It stands in for people (`annotators`) and is the held-out truth of best-of-N.
`STRUCTURE` and `COLOR` are the weights of its two halves, to evaluate by one what was learned from the other.
Knows pictures and captions; knows no scorer and no noise.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sp_rerank.storage.images import to_rgb
from sp_rerank.train.mini.grammar import BACKGROUNDS, Description, parse
from sp_rerank.train.mini.scenes import SIDE, SIZES, backgrounds, drawing, paste, styles_of, worn

Weights = tuple[float, float, float, float]
FULL: Weights = (2.0, 6.0, 6.0, 0.5)
STRUCTURE: Weights = (2.0, 0.0, 0.0, 0.5)
COLOR: Weights = (0.0, 6.0, 6.0, 0.0)
"""Weights of S, -P_o, -P_b and H."""

CANVAS = 80  # pixels a side of the circular correlations: what a drawing has outside of the picture falls on zeros
NEAR = 3  # pixels that a place may lie beside those of the renderer, and a size 1: a shift is no fault
THRESHOLD = 0.4  # of a pixel's difference
AROUND = 3  # pixels around an object that count as the object's
C3 = 4.5e-4
WINDOW = 7

Slot = tuple[float, float, float, float]
"""Where an object's center may lie: x, y, and how far from there to each side, in pixels."""


@dataclass(frozen=True, slots=True)
class Template:
    """A drawing with what it wears: (h, w, 4) in [0, 1], premultiplied; the drawing's own center is at `anchor`."""

    sprite: np.ndarray
    anchor: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Terms:
    """S, P_o, P_b and H of n pictures, (n,) each."""

    structure: np.ndarray
    objects: np.ndarray
    background: np.ndarray
    sharpness: np.ndarray

    def utility(self, weights: Weights = FULL) -> np.ndarray:
        """(n,) U, at most 2.5 with the full weights."""
        s, o, b, h = weights
        return s * self.structure - o * self.objects - b * self.background + h * self.sharpness


class Truth:
    """The truth as something that scores, so that it stands beside scorers."""

    name = "truth"

    def score(self, prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image]) -> Tensor:
        """(n,) U of images of one caption, or of one each.

        Raises:
            ValueError: if a prompt is not a caption of the mini world.
        """
        if isinstance(prompt, str):
            return torch.from_numpy(terms_of(prompt, images).utility()).float()
        return torch.cat([self.score(caption, images[i : i + 1]) for i, caption in enumerate(prompt)])


def terms_of(caption: str, images: Tensor | Sequence[Image.Image]) -> Terms:
    """The terms of the images of one caption.

    Args:
        caption: of the grammar.
        images: (n, 3, 64, 64) in [0, 1], or n PIL images of 64x64 pixels.

    Raises:
        ValueError: if it is not a caption of the mini world.
    """
    pictures = _as_tensor(images)
    parts = [_terms(parse(caption), part) for part in pictures.split(16)]
    return Terms(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def nearest_scenes(caption: str, images: Tensor | Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
    """The nearest scene of each image, (n, 3, 64, 64) in [0, 1], and where its objects are, (n, 64, 64) bool."""
    return _nearest(parse(caption), _as_tensor(images))


def _as_tensor(images: Tensor | Sequence[Image.Image]) -> Tensor:
    if not isinstance(images, Tensor):
        arrays = np.stack([np.asarray(to_rgb(image)) for image in images])
        images = torch.from_numpy(arrays).movedim(-1, 1) / 255
    return images.float().cpu()


@torch.inference_mode()
def _terms(wanted: Description, pictures: Tensor) -> tuple[np.ndarray, ...]:
    scenes, masks = _nearest(wanted, pictures)
    inside = F.max_pool2d(masks[:, None].float(), 2 * AROUND + 1, stride=1, padding=AROUND)[:, 0]
    a, b = _mean(pictures, 3), _mean(scenes, 3)
    difference = (a - b).abs().clamp(max=THRESHOLD).mean(dim=1)
    detail = _mean_where(_detail(pictures), inside) / _mean_where(_detail(_through_autoencoder(scenes)), inside)
    values = (
        _mean_where(structure(a, b), inside),
        _mean_where(difference, inside),
        _mean_where(difference, 1 - inside),
        detail.sqrt().clamp(max=1),
    )
    return tuple(value.double().numpy() for value in values)


def _mean(images: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(images, side, stride=1, padding=side // 2, count_include_pad=False)


def _mean_where(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum(dim=(1, 2)) / weight.sum(dim=(1, 2)).clamp(min=1)


def _detail(images: Tensor) -> Tensor:
    return (images - _mean(images, 3)).square().mean(dim=1)


def structure(first: Tensor, second: Tensor) -> Tensor:
    """(n, H, W): (cov + C3) / (sd sd + C3) in windows of 7x7 pixels, the mean of the channels."""
    a, b = _mean(first, WINDOW), _mean(second, WINDOW)
    variances = ((_mean(x**2, WINDOW) - m**2).clamp(min=0) for x, m in ((first, a), (second, b)))
    deviation, other = (variance.sqrt() for variance in variances)
    return ((_mean(first * second, WINDOW) - a * b + C3) / (deviation * other + C3)).mean(dim=1)


@functools.cache
def _autoencoder() -> Any:
    from diffusers import AutoencoderKL

    from sp_rerank.diffusion.loading import MINI

    return AutoencoderKL.from_pretrained(MINI, subfolder="vae", dtype=torch.float32).eval()


def _through_autoencoder(images: Tensor) -> Tensor:
    autoencoder = _autoencoder()
    latents = autoencoder.encode(images * 2 - 1).latent_dist.mean
    return (autoencoder.decode(latents).sample / 2 + 0.5).clamp(0, 1)


def layouts(wanted: Description) -> tuple[tuple[str, ...], list[tuple[Slot, ...]]]:
    """The objects of a description, and the ways in which the renderer could place them, a slot an object."""
    names = (wanted.first,) * wanted.count + ((wanted.second,) if wanted.second else ())
    left, right = (16.0, 32.0, 2.0, 12.0), (48.0, 32.0, 2.0, 12.0)
    if wanted.second and wanted.relation == "above":
        return names, [((32.0, 16.0, 12.0, 1.5), (32.0, 47.0, 12.0, 1.5))]
    if wanted.second or wanted.count == 2:
        orders = {"left": [(left, right)], "right": [(right, left)]}
        return names, orders.get(wanted.relation or "", [(left, right), (right, left)])
    if wanted.count == 3:
        row = tuple((x, 32.0, 1.0, 11.0) for x in (11.0, 32.0, 53.0))
        return names, [row, ((32.0, 17.0, 3.0, 2.0), (17.0, 45.0, 2.0, 2.0), (47.0, 45.0, 2.0, 2.0))]
    lower = 5 if wanted.accessory in ("crown", "top hat") else 1
    return names, [((32.0, 32.0 + lower, 6.0, 4.0),)]


def _size_range(wanted: Description) -> tuple[int, int]:
    if wanted.second:
        return SIZES["stacked" if wanted.relation == "above" else "two"]
    if wanted.count > 1:
        return SIZES["two" if wanted.count == 2 else "three"]
    return SIZES["worn" if wanted.accessory else "one"]


@functools.lru_cache(maxsize=64)
def templates(name: str, accessory: str | None, low: int, high: int) -> list[Template]:
    """All drawings of an object in a range of sizes: each style, each mirrored too."""
    found = []
    for style in styles_of(name):
        for size in range(low - 1, high + 2):
            sprite = drawing(style, name, size)
            canvas, top = worn(sprite, accessory, style) if accessory else (sprite, 0)
            height, width = sprite.shape[:2]
            anchor = top + height // 2, (canvas.shape[1] - width) // 2 + width // 2
            found.append(Template(canvas, anchor))
            mirrored = np.ascontiguousarray(canvas[:, ::-1])
            found.append(Template(mirrored, (anchor[0], canvas.shape[1] - 1 - anchor[1])))
    return found


@functools.lru_cache(maxsize=4)
def _spectra(name: str, accessory: str | None, low: int, high: int) -> Tensor:
    """(frequencies, 9, templates) complex: the templates' side of the correlations, see `_energies`."""
    planes = np.zeros((len(templates(name, accessory, low, high)), 9, CANVAS, CANVAS), np.float32)
    for row, template in zip(planes, templates(name, accessory, low, high), strict=True):
        sprite = np.moveaxis(template.sprite, -1, 0)
        color, alpha = sprite[:3], sprite[3:]
        height, width = alpha.shape[1:]
        row[:, :height, :width] = np.concatenate([
            2 * alpha, -2 * color, alpha**2, -2 * alpha * color, (color**2).sum(axis=0, keepdims=True)
        ])  # fmt: skip
        row[:] = np.roll(row, (-template.anchor[0], -template.anchor[1]), axis=(1, 2))
    spectra = torch.fft.rfft2(torch.from_numpy(planes)).conj()
    return spectra.flatten(2).permute(2, 1, 0).contiguous()


def _energies(pictures: Tensor, grounds: Tensor, spectra: Tensor) -> Tensor:
    """(n, templates, 64, 64): what the squared error gains by a drawing whose center lies there.

    With D = picture - background and a drawing of colors s (premultiplied) and opacity a, the error of the pixels under
    it changes by |D + a b - s|^2 - |D|^2 = 2 a D.b - 2 D.s + a^2 |b|^2 - 2 a s.b + |s|^2, a sum of correlations.
    """
    difference = pictures - grounds
    planes = torch.cat([
        (difference * grounds).sum(1, keepdim=True), difference,
        (grounds**2).sum(1, keepdim=True), grounds, torch.ones_like(grounds[:, :1]),
    ], dim=1)  # fmt: skip
    spectrum = torch.fft.rfft2(planes, s=(CANVAS, CANVAS)).flatten(2).permute(2, 0, 1).contiguous()
    product = torch.bmm(spectrum, spectra).permute(1, 2, 0)
    product = product.reshape(len(pictures), -1, CANVAS, CANVAS // 2 + 1)
    return torch.fft.irfft2(product, s=(CANVAS, CANVAS))[..., :SIDE, :SIDE]


def _grounds(wanted: Description, pictures: Tensor) -> Tensor:
    """The background nearest to each picture: errors of a pixel are cut, so that objects do not decide."""
    kinds = [wanted.background] if wanted.background else list(BACKGROUNDS)
    every = torch.from_numpy(np.stack([ground for kind in kinds for ground in backgrounds(kind)])).movedim(-1, 1)
    small, few = F.avg_pool2d(every.float(), 4), F.avg_pool2d(pictures, 4)
    error = (few[:, None] - small[None]).abs().mean(dim=2).clamp(max=0.2).sum(dim=(2, 3))
    return every.float()[error.argmin(dim=1)]


def _nearest(wanted: Description, pictures: Tensor) -> tuple[Tensor, Tensor]:
    names, ways = layouts(wanted)
    low, high = _size_range(wanted)
    grounds = _grounds(wanted, pictures)
    energies = {
        name: _energies(pictures, grounds, _spectra(name, wanted.accessory, low, high)) for name in dict.fromkeys(names)
    }
    scenes = grounds.movedim(1, -1).contiguous().numpy()
    masks = np.zeros(scenes.shape[:3], bool)
    for i in range(len(pictures)):
        for name, template, y, x in _best_placing(names, ways, {name: every[i] for name, every in energies.items()}):
            chosen = templates(name, wanted.accessory, low, high)[template]
            top, left = y - chosen.anchor[0], x - chosen.anchor[1]
            paste(scenes[i], chosen.sprite, left, top)
            cover = np.zeros((SIDE, SIDE, 3), np.float32)
            paste(cover, np.repeat(chosen.sprite[..., 3:], 4, axis=2), left, top)
            masks[i] |= cover[..., 0] > 0.5
    return torch.from_numpy(scenes).movedim(-1, 1), torch.from_numpy(masks)


def _best_placing(
    names: Sequence[str], ways: Sequence[Sequence[Slot]], energies: dict[str, Tensor]
) -> list[tuple[str, int, int, int]]:
    """Of each object the template, y and x that together have the least error; objects of a kind share a style."""
    best: tuple[float, list[tuple[str, int, int, int]]] | None = None
    for slots in ways:
        total, placed = 0.0, []
        for name in dict.fromkeys(names):
            mine = [slot for slot, other in zip(slots, names, strict=True) if other == name]
            energy, places = _place_kind(energies[name], mine)
            total += energy
            placed += [(name, *place) for place in places]
        if best is None or total < best[0]:
            best = total, placed
    assert best is not None
    return best[1]


def _place_kind(energy: Tensor, slots: Sequence[Slot]) -> tuple[float, list[tuple[int, int, int]]]:
    """The places of all objects of a kind, in one style and size, a mirror image each as it fits."""
    values, places = [], []
    for x, y, dx, dy in slots:
        x0, x1, y0, y1 = round(x - dx) - NEAR, round(x + dx) + NEAR + 1, round(y - dy) - NEAR, round(y + dy) + NEAR + 1
        window = energy[:, y0:y1, x0:x1]
        least, at = window.flatten(1).min(dim=1)
        pairs, which = least.view(-1, 2).min(dim=1)  # a template and its mirror image lie side by side
        values.append(pairs)
        places.append([(2 * k + int(m), y0 + int(at[2 * k + m]) // (x1 - x0), x0 + int(at[2 * k + m]) % (x1 - x0))
                       for k, m in enumerate(which.tolist())])  # fmt: skip
    total = torch.stack(values).sum(dim=0)
    best = int(total.argmin())
    return float(total[best]), [place[best] for place in places]
