"""The contact sheet of a run: the best large, then every candidate in order, with rank, seed and score."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from sp_rerank.run.layout import GRID, inside
from sp_rerank.stats import ranking
from sp_rerank.storage import atomic

if TYPE_CHECKING:
    from sp_rerank.run.folder import RunDir

COLUMNS = 10
THUMBNAIL, GAP, MARGIN = 120, 10, 36  # pixels
CAPTION = 30  # pixels below a thumbnail
BEST = 320  # the most pixels of a side of the best ones
PAPER, INK, FAINT, GOLD = (250, 249, 246), (32, 32, 36), (130, 130, 138), (196, 138, 20)
MOST = 400  # candidates on a sheet: of a larger run the best ones, so that the sheet stays a picture
LOST = {"flagged": "replaced", "nonfinite": "broken", "dropped": "dropped"}


def write_contact_sheet(run: RunDir) -> None:
    """Draw the sheet of a run that is being concluded into its folder.

    Raises:
        StorageError: If it cannot be written.
    """
    best = run.result.best if run.result else ()
    atomic.write(inside(run.path, GRID), contact_sheet(run, run.order(), best, run.config.scorers[0]))


def contact_sheet(run: RunDir, order: Sequence[int], best: Sequence[int], scorer: str) -> bytes:
    """Draw the sheet as a PNG file.

    Args:
        run: a complete run folder; its images are opened one at a time.
        order: all indices, the best first.
        best: those that are drawn large.
        scorer: the name under which the rows hold the score of the order.
    """
    ranks, chosen = {index: rank for rank, index in enumerate(order, start=1)}, set(best)
    order = order[:MOST]
    rows_of_all = math.ceil(len(order) / COLUMNS)
    width = 2 * MARGIN + COLUMNS * (THUMBNAIL + GAP) - GAP
    per_row = min(max(len(best), 1), 4)
    large = min(BEST, (width - 2 * MARGIN - (per_row - 1) * 2 * GAP) // per_row)
    title = textwrap.wrap(run.config.prompt, 74)[:3] or [""]
    head = MARGIN + 34 * len(title) + 34
    best_rows = math.ceil(len(best) / per_row)
    below = head + best_rows * (large + CAPTION + 2 * GAP)
    sheet = Image.new("RGB", (width, below + rows_of_all * (THUMBNAIL + CAPTION + GAP) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for line, words in enumerate(title):
        draw.text((MARGIN, MARGIN - 6 + 34 * line), words, INK, _font(28))
    draw.text((MARGIN, head - 32), subtitle(run, scorer), FAINT, _font(16))
    for place, index in enumerate(best):
        x = MARGIN + place % per_row * (large + 2 * GAP)
        y = head + place // per_row * (large + CAPTION + 2 * GAP)
        _put(sheet, run, index, (x, y), large)
        draw.text((x, y + large + 6), f"{ranks[index]}", GOLD, _font(20))
        draw.text((x + 28, y + large + 9), _label(run, index, scorer), INK, _font(16))
    for place, index in enumerate(order):
        x = MARGIN + place % COLUMNS * (THUMBNAIL + GAP)
        y = below + place // COLUMNS * (THUMBNAIL + CAPTION + GAP)
        _put(sheet, run, index, (x, y), THUMBNAIL)
        if index in chosen:
            draw.rectangle((x - 3, y - 3, x + THUMBNAIL + 2, y + THUMBNAIL + 2), outline=GOLD, width=3)
        draw.text((x, y + THUMBNAIL + 5), f"{place + 1}", GOLD if index in chosen else FAINT, _font(12))
        draw.text((x + 26, y + THUMBNAIL + 5), _label(run, index, scorer, short=True), FAINT, _font(12))
    file = io.BytesIO()
    sheet.save(file, "PNG", compress_level=3)  # half of the time for a tenth more bytes
    return file.getvalue()


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def subtitle(run: RunDir, scorer: str) -> str:
    """The line below the title: how many candidates, how they were made as far as the run holds it, and the scorer."""
    config, made = run.config, len(run.rows)
    parts = [f"the best {MOST} of {made} candidates" if made > MOST else f"{made} candidates"]
    # An older run.json does not hold every value.
    if config.model is not None:
        parts[0] += f" by {config.model}"
    if config.steps is not None:
        scheduler = f" of {config.scheduler.removesuffix('Scheduler')}" if config.scheduler is not None else ""
        parts.append(f"{config.steps} steps{scheduler}")
    if config.guidance_scale is not None:
        parts.append(f"guidance {config.guidance_scale:g}")
    return ", ".join([*parts, f"ranked by {ranking.short_names([scorer])[scorer]}"])


def _label(run: RunDir, index: int, scorer: str, *, short: bool = False) -> str:
    row = run.rows[index]
    score = row.scores.get(scorer)
    value = LOST.get(row.status, "") if score is None or row.status != "ok" else f"{score:.3f}"
    return f"{value}  #{row.seed}" if short else f"{value}   seed {row.seed}"


def _put(sheet: Image.Image, run: RunDir, index: int, corner: tuple[int, int], side: int) -> None:
    """Put an image into the middle of a square, scaled to fit; dimmed where it is not to be chosen."""
    image = run.read_image(index)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    scaled = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    if run.rows[index].status != "ok":  # as in the gallery: there, but not to be chosen
        scaled = Image.blend(ImageEnhance.Color(scaled).enhance(0.35), Image.new("RGB", scaled.size, PAPER), 0.5)
    sheet.paste(scaled, (corner[0] + (side - size[0]) // 2, corner[1] + (side - size[1]) // 2))
