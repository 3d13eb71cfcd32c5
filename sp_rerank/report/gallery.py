"""The gallery of a run: index.html beside its images, one static file to look at every candidate by every scorer.

Knows a run folder and what of it a person wants to see. Loads no model: scores, stages and statuses are the
manifest's, tie groups those of calibrations that lie beside weights on this machine. Names no place on this machine
and no time, so that a resumed run has the page of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import math
import statistics
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp_rerank.compare.collect import is_chance_sample
from sp_rerank.errors import StorageError
from sp_rerank.report import charts
from sp_rerank.report.page import page
from sp_rerank.run.folder import RunDir
from sp_rerank.run.records import Row
from sp_rerank.scorers.calibration import calibration_of
from sp_rerank.stats import agreement, best_of_n, ranking
from sp_rerank.storage import atomic

FILE = "index.html"
SMALL = 128  # pixels; images up to this side are shown large with hard edges
TITLE = 80  # characters of the prompt in the title of the window
LONG, VERY_LONG = 90, 240  # characters of a prompt, from which on it is set smaller
PICKS = 4  # shown large where all scorers agree on the best
LARGEST = 3.5e38  # a score is a float32; a number in a manifest that is none is no score

_PNG = b"\x89PNG\r\n\x1a\n"
_PROBLEMS = {
    "altered": "changed since it was made, the SHA-256 differs",
    "missing": "the file is missing",
    "outside": "the path leads out of the run folder and is not followed",
}
_STATUS = {
    "flagged": "replaced by the safety checker",
    "nonfinite": "not finite: broken pixels or no score",
    "dropped": "dropped by the search",
}


@dataclass(frozen=True, slots=True)
class Ordering:
    """All candidates of a run as one scorer orders them.

    Attributes:
        name: of the scorer, in full.
        label: what of the name is needed to tell the run's scorers apart.
        digits: of a score behind the point, as many as tell candidates apart.
        scores: by index, finite ones of usable candidates only.
        order: indices of all candidates, those with a rank first; the others by how far they came.
        groups: tie group of each place that has a rank; None where the scorer has no calibration.
    """

    name: str
    label: str
    digits: int
    scores: dict[int, float]
    order: tuple[int, ...]
    groups: tuple[int, ...] | None

    def text(self, score: float) -> str:
        """A score of this scorer as it is shown."""
        return f"{score:.{self.digits}f}"

    def rank(self, index: int) -> int | None:
        """1 = best; None for a candidate that is not ranked."""
        return self.order.index(index) + 1 if index in self.scores else None


@dataclass(frozen=True, slots=True)
class Picture:
    """The file of a candidate, as far as it can be shown.

    Attributes:
        file: path from the page; None where there is nothing to show.
        width: pixels.
        height: pixels.
        problem: what is wrong with it, a key of `_PROBLEMS`; None if it is as it was committed.
    """

    file: str | None
    width: int
    height: int
    problem: str | None


def write_gallery(run: RunDir) -> Path:
    """Write the gallery into the run folder, in place of an older one.

    Args:
        run: complete or not; what it holds is shown.

    Returns:
        The path of index.html.

    Raises:
        StorageError: if it cannot be written.
    """
    path = run.path / FILE
    atomic.write(path, gallery(run))
    return path


def gallery(run: RunDir) -> bytes:
    """The page of a run in UTF-8, for its folder; a file opens without a server, a network or any other file of ours.

    Args:
        run: complete or not, with or without scores.
    """
    pictures = {index: picture_of(run, row) for index, row in sorted(run.rows.items())}
    orderings = orderings_of(run)
    first = orderings[0].order if orderings else tuple(_unranked(run, set()))
    return page(
        "run.html",
        styles=("page.css", "run.css"),
        scripts=("run.js",),
        title=shortened(prompt_of(run), TITLE),
        prompt=prompt_of(run),
        length=length_of(prompt_of(run)),
        negative=run.config.negative_prompt,
        facts=_facts(run),
        notes=_notes(run, pictures, orderings),
        small=_is_small(pictures),
        first=first,
        rows=run.rows,
        pictures=pictures,
        orderings=orderings,
        picks=_picks(orderings, first),
        ordinal=ordinal,
        shortened=shortened,
        median=statistics.median,
        histograms=[charts.histogram(list(one.scores.values())) for one in orderings],
        pairs=_pairs(orderings),
        curves=[curve for one in orderings if (curve := _curve(one, orderings))] if is_chance_sample(run) else [],
        frame=charts,
        steered=_strategy(run) == "steering",
        budget=_budget(run),
        data=_data(run, pictures, orderings, first),
    )


def orderings_of(run: RunDir) -> list[Ordering]:
    """How each scorer of a run orders its candidates; the one that selected comes first.

    A scorer without a finite score of a usable candidate is left out.
    """
    names = dict.fromkeys([*_configured(run), *(name for row in run.rows.values() for name in row.scores)])
    labels = labels_of(list(names))
    orderings = []
    for name in names:
        scores = {
            index: score
            for index, row in sorted(run.rows.items())
            if row.status == "ok" and (score := row.scores.get(name)) is not None and abs(score) <= LARGEST
        }
        if scores:
            orderings.append(_ordering(run, name, labels[name], scores))
    return orderings


def _ordering(run: RunDir, name: str, label: str, scores: dict[int, float]) -> Ordering:
    indices, values = list(scores), list(scores.values())
    ranked = [indices[place] for place in ranking.order(values)]
    calibration = calibration_of(name)
    groups = ranking.tie_groups([scores[i] for i in ranked], calibration.margin) if calibration else None
    order = (*ranked, *_unranked(run, set(ranked)))
    return Ordering(name, label, _digits(values), scores, order, tuple(groups) if groups else None)


def _configured(run: RunDir) -> list[str]:
    return list(run.config.scorers)


def labels_of(names: Sequence[str]) -> dict[str, str]:
    """The names without their hashes, or with a part of them where two would be the same."""
    short = Counter(name.partition("@")[0] for name in names)
    return {
        name: name.partition("@")[0] if short[name.partition("@")[0]] == 1 else shortened(name, 24) for name in names
    }


def _digits(scores: Sequence[float]) -> int:
    """So many that the range of the scores is shown in a few hundred steps."""
    spread = max(scores) - min(scores)
    return min(6, max(1, 2 - math.floor(math.log10(spread)))) if spread > 0 else 3


def _unranked(run: RunDir, ranked: set[int]) -> list[int]:
    """The others: those that only lack a score, then dropped ones by how far they came, flagged ones, broken ones."""
    kinds = ("ok", "dropped", "flagged", "nonfinite")

    def key(index: int) -> tuple[int, int, float, int]:
        row = run.rows[index]
        last = row.stages[-1].score if row.stages else None
        return kinds.index(row.status), -len(row.stages), math.inf if last is None else -last, index

    return sorted((index for index in run.rows if index not in ranked), key=key)


def picture_of(run: RunDir, row: Row) -> Picture:
    """The image of a row: whether it may be shown, its size by its header, whether it is what was committed."""
    try:
        path = run.image(row.index)
        if not path.is_file():
            return Picture(None, 1, 1, "missing")
        png = path.read_bytes()
    except StorageError:
        return Picture(None, 1, 1, "outside")
    except OSError:
        return Picture(None, 1, 1, "missing")
    if hashlib.sha256(png).hexdigest() != row.sha256:
        return Picture(row.file, 1, 1, "altered")
    width, height = struct.unpack(">II", png[16:24]) if png.startswith(_PNG) and len(png) > 24 else (1, 1)
    return Picture(row.file, width, height, None)


def _is_small(pictures: Mapping[int, Picture]) -> bool:
    known = [max(one.width, one.height) for one in pictures.values() if one.file and not one.problem]
    return bool(known) and max(known) <= SMALL


# Words


def prompt_of(run: RunDir) -> str:
    """The prompt as the page shows it; a run by another tool may have none."""
    return run.config.prompt or ""


def shortened(text: str, most: int) -> str:
    """At most so many characters of a text, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def length_of(prompt: str) -> str:
    """How large a prompt can be set, as a class of page.css."""
    return "long" if len(prompt) > VERY_LONG else "medium" if len(prompt) > LONG else "short"


def ordinal(number: int) -> str:
    """For example "2nd"."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def ended_by_rule(run: RunDir) -> bool:
    """Whether a rule such as `confidence` ended the run before its last candidate: it is complete as it is."""
    return run.result is not None and run.result.ended.by != "complete"


def _last(run: RunDir) -> int:
    """Index of the last candidate that the run has, or is to have."""
    return max(run.rows) if ended_by_rule(run) else run.n - 1


def _strategy(run: RunDir) -> str:
    """The name of the run's search; empty where run.json does not tell."""
    return run.config.search.strategy


def _facts(run: RunDir) -> list[str]:
    """How the images were made, as far as run.json tells; an older or edited one may not."""
    config, last = run.config, _last(run)
    count = len(run.rows) if ended_by_rule(run) else run.n
    facts = [f"{count} candidates" if count != 1 else "1 candidate"]
    if config.model is not None:
        facts.append(f"by {config.model}")
    if config.steps is not None:
        of = f" of {config.scheduler.removesuffix('Scheduler')}" if config.scheduler is not None else ""
        facts.append(f"{config.steps} steps{of}")
    if config.guidance_scale is not None:
        facts.append(f"guidance {config.guidance_scale:g}")
    facts.append(f"seeds {config.seed}–{config.seed + last}" if last else f"seed {config.seed}")
    if _strategy(run) not in ("", "exhaustive"):
        facts.append(f"{_strategy(run)} search")
    return facts


def _notes(run: RunDir, pictures: Mapping[int, Picture], orderings: Sequence[Ordering]) -> list[str]:
    """What a person should know before believing the page."""
    notes = []
    if ended_by_rule(run):
        notes.append(f"A rule ended the run after {len(run.rows)} of {run.n} candidates.")
    elif run.missing:
        notes.append(f"{len(run.rows)} of {run.n} candidates so far; --resume goes on with the run.")
    if _strategy(run) == "steering":
        notes.append("Steered: the images descend from others of their batch, and no seed alone makes one again.")
    if run.rows and not orderings:
        notes.append("No candidate has a score: they are shown in the order in which they were made.")
    shown = {one.name for one in orderings}
    notes += [f"{name}: no usable candidate has a score by it." for name in _configured(run) if name not in shown]
    statuses = Counter(row.status for row in run.rows.values())
    notes += [f"{statuses[status]} {meaning}." for status, meaning in _STATUS.items() if statuses[status]]
    problems = Counter(one.problem for one in pictures.values() if one.problem)
    for problem, meaning in _PROBLEMS.items():
        if problems[problem]:
            notes.append(f"{problems[problem]} {'image' if problems[problem] == 1 else 'images'}: {meaning}.")
    return notes


# Figures


def _picks(orderings: Sequence[Ordering], first: Sequence[int]) -> dict[int, list[Ordering]]:
    """The candidates to show large, each with those that like it best: every scorer's pick, or the best of one."""
    picks: dict[int, list[Ordering]] = {}
    for one in orderings:
        picks.setdefault(one.order[0], []).append(one)
    if len(picks) == 1:
        picks |= {index: [] for index in first[1:PICKS] if index in orderings[0].scores}
    return picks


def _pairs(orderings: Sequence[Ordering]) -> list[dict[str, Any]]:
    """Every scorer against every other: the scatter, their agreement, and where each one's pick stands."""
    pairs = []
    for place, a in enumerate(orderings):
        for b in orderings[place + 1 :]:
            both = [index for index in a.scores if index in b.scores]
            if len(both) < 2:
                continue
            points = [(a.scores[i], b.scores[i]) for i in both]
            picks = [index for index in dict.fromkeys((a.order[0], b.order[0])) if index in both]
            marked = [(a.scores[i], b.scores[i]) for i in picks]
            k = min(10, len(both))
            xs, ys = zip(*points, strict=True)
            pairs.append({
                "a": a,
                "b": b,
                "picks": picks,
                "chart": charts.scatter(points, marked),
                "kendall": agreement.kendall(xs, ys),
                "k": k,
                "shared": round(agreement.top_k_overlap(xs, ys, k) * k),
            })
    return pairs


def _curve(picking: Ordering, orderings: Sequence[Ordering]) -> dict[str, Any] | None:
    """What the best of n is worth, to the scorer that picks it and to the others, between their mean and their best."""
    scores = list(picking.scores.values())
    own = best_of_n.expected_best(scores)
    if len(own) < 2 or not own[-1] > own[0]:
        return None
    others = [one for one in orderings if one is not picking and one.scores.keys() == picking.scores.keys()]
    series, labels = [_share(own, own)], [picking.label]
    for other in others:
        values = [other.scores[index] for index in picking.scores]
        theirs = best_of_n.expected_best(values)
        if theirs[-1] > theirs[0]:
            series.append(_share(best_of_n.expected_best(scores, values), theirs))
            labels.append(other.label)
    shown = [n for n in (1, 4, 10, 100) if n < len(own)] + [len(own)]
    return {
        "by": picking,
        "chart": charts.curves(series, best_of_n.n_for_gain(own)),
        "labels": labels,
        "ends": [one[-1] for one in series],
        "values": [(n, picking.text(own[n - 1])) for n in shown],
        "reached": best_of_n.n_for_gain(own),
    }


def _share(curve: agreement.Array, own: agreement.Array) -> list[float]:
    """A curve as percent of the way from a scorer's mean candidate to its best one."""
    return [float(value) for value in (curve - own[0]) / (own[-1] - own[0]) * 100]


def _budget(run: RunDir) -> dict[str, Any] | None:
    """What a search spent, in evaluations of the denoiser, against what all candidates with all steps would take."""
    finished = [row for row in run.rows.values() if row.status != "dropped"]
    if not any(row.stages for row in run.rows.values()):
        return None
    spent, exhaustive = run.nfe, run.nfe_each * len(run.rows)
    if not exhaustive:
        return None
    stages = Counter(seen.stage.label for row in run.rows.values() for seen in row.stages)
    return {
        "spent": spent,
        "exhaustive": exhaustive,
        "share": spent / exhaustive,
        "counts": [*stages.items(), ("all steps", len(finished))],
    }


# Data


def _data(
    run: RunDir, pictures: Mapping[int, Picture], orderings: Sequence[Ordering], first: Sequence[int]
) -> dict[str, Any]:
    """What run.js needs beside the page's own text."""
    return {
        "last": _last(run),
        "prompt": prompt_of(run),
        "negative": run.config.negative_prompt,
        "scorers": [
            {
                "name": one.name,
                "label": one.label,
                "digits": one.digits,
                "order": one.order,
                "ranked": len(one.scores),
                "groups": one.groups,
            }
            for one in orderings
        ],
        "order": first,
        "candidates": {
            index: {
                "seed": str(row.seed),  # as text: JavaScript has no whole numbers above 2^53
                "status": row.status,
                "why": _why(row, pictures[index]),
                "scores": [row.scores.get(one.name) for one in orderings],
                "stages": [[seen.stage.label, seen.score, seen.nfe] for seen in row.stages],
                "evaluations": row.nfe,
                "file": pictures[index].file,
                "size": [pictures[index].width, pictures[index].height],
            }
            for index, row in run.rows.items()
        },
    }


def _why(row: Row, picture: Picture) -> str:
    """What sets a candidate apart, in words; empty for one like any other."""
    reasons = [_STATUS[row.status]] if row.status != "ok" else []
    return "; ".join([*reasons, *([_PROBLEMS[picture.problem]] if picture.problem else [])])
