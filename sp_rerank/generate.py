"""Glue: sampler x search x scorers -> a ranking, kept in memory or in a run folder."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_rerank.config import configure
from sp_rerank.errors import NothingUsableError, SpRerankError, TryAgainError, is_device_lost, is_out_of_memory
from sp_rerank.rank import ranked
from sp_rerank.run.folder import RunWriter
from sp_rerank.run.records import Row, Stage, Status
from sp_rerank.scorers import embedder
from sp_rerank.scorers.calibration import margin_of
from sp_rerank.search.base import usable_scores
from sp_rerank.stats import diversity, ranking, stopping
from sp_rerank.storage import images
from sp_rerank.types import Candidate, Ranked

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from sp_rerank.diffusion.sampler import Sampler
    from sp_rerank.search import Known, Scored
    from sp_rerank.types import Scorer

log = logging.getLogger(__name__)

NONFINITE_SHARE = 0.1  # of the candidates; above it the precision is to blame, not the seeds


Choice = Callable[[Sequence[Candidate], Sequence[float]], list[int]]
"""Of candidates and their scores, the best first, the places to keep."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        stage: what a search is at, such as "draft, 8 steps"; None while candidates are finished.
        done: candidates that this stage has seen.
        made: those of them that were made by this call.
        total: candidates that it will have seen.
        best: the best usable score of a finished candidate so far, NaN before there is one.
    """

    stage: str | None
    done: int
    made: int
    total: int
    best: float


@dataclass
class _Tally:
    """What is known of the candidates so far, by index, and the images that may still be among the best.

    Attributes:
        seen: what a search saw of each on the way.
        status: of the finished ones, like the next two.
        scores: by the scorer that selects.
        evaluations: of the denoiser, those of the stages left out.
        kept: images in memory.
    """

    top_k: int
    seen: dict[int, tuple[Stage, ...]] = field(default_factory=dict)
    status: dict[int, Status] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    evaluations: dict[int, int] = field(default_factory=dict)
    kept: dict[int, Candidate] = field(default_factory=dict)

    def add(self, row: Row, scorer: str, candidate: Candidate | None = None) -> None:
        score = row.scores.get(scorer)
        self.status[row.index], self.scores[row.index] = row.status, math.nan if score is None else score
        self.evaluations[row.index] = row.unet_evaluations - _spent(row.stages)
        if candidate:
            self.kept[row.index] = candidate

    def best(self) -> list[int]:
        return [i for i in self.order() if self.status[i] == "ok" and math.isfinite(self.scores[i])][: self.top_k]

    def order(self) -> list[int]:
        """Finished candidates from the best to the worst."""
        indices = sorted(self.scores)
        scores = [self.scores[i] for i in indices]
        return [indices[place] for place in ranking.order(scores, [self.status[i] != "ok" for i in indices])]

    def forget(self) -> None:
        """Let go of the images that are no longer among the best."""
        best = set(self.best())
        self.kept = {index: candidate for index, candidate in self.kept.items() if index in best}

    def dropped(self) -> list[int]:
        """What a search saw and did not finish: those that it kept longest first, among them the highest scores."""
        left = [index for index in self.seen if index not in self.scores]

        def place(index: int) -> tuple[int, float, int]:
            score = self.seen[index][-1].score
            return -len(self.seen[index]), math.inf if score is None else -score, index

        return sorted(left, key=place)

    def known(self) -> Known:
        """What a search need not make or score again."""
        known: dict[str | None, dict[int, float]] = {None: self.scores}
        for index, stages in self.seen.items():
            for stage in stages:
                known.setdefault(stage.name, {})[index] = math.nan if stage.score is None else stage.score
        return known

    def spent(self) -> int:
        """Evaluations of the denoiser, all stages included."""
        return sum(self.evaluations.values()) + sum(map(_spent, self.seen.values()))


def _spent(stages: Sequence[Stage]) -> int:
    return sum(stage.unet_evaluations for stage in stages)


def generate(
    prompt: str,
    *,
    pipe: Any,
    scorer: Scorer,
    also: Sequence[Scorer] = (),
    n: int = 100,
    top_k: int = 4,
    diverse: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    **settings: Any,
) -> list[Ranked]:
    """Make n candidates for a prompt, rank them, and return the best k.

    Args:
        prompt: what the images should show.
        pipe: a diffusers text-to-image pipeline, from `sp_rerank.load_pipeline` or your own.
        scorer: what ranks them, from `sp_rerank.load_scorer` or your own.
        also: other scorers, whose scores of every finished candidate are kept beside; they choose nothing.
        n: number of candidates.
        top_k: how many to return, at most n; fewer come back where fewer are usable.
        diverse: return `top_k` that are no near-copies of each other, by the scorer's embeddings, instead of the best;
            see `sp_rerank.stats.diversity`.
        out: the run folder, written as the run goes on; None keeps the best in memory only.
        resume: go on with a run folder that holds a part of this very run.
        progress: called after each batch.
        stop: asked after each batch; when it says True, the run ends with KeyboardInterrupt, nothing lost.
        **settings: seed, batch_size, search, record, until, max_evaluations, max_seconds, steps, guidance_scale,
            negative_prompt, height, width, strict: see `sp_rerank.config.configure`.

    Returns:
        The best usable candidates, the best first.

    Raises:
        UsageError: if an argument is out of its range, or `out` holds another run.
        NothingUsableError: if every image was flagged, or more than a tenth were not finite. The folder is complete.
        TryAgainError: if the accelerator failed or ran out of memory.
        FolderBusyError, StorageError: see `sp_rerank.run.folder.RunWriter`.

    Example:
        >>> best = generate("a lemon", pipe=load_pipeline("mini"), scorer=load_scorer("clip-mini"), n=20, top_k=1)
        >>> best[0].candidate.image.save("lemon.png")
    """
    config = configure(prompt, pipe=pipe, scorer=scorer, also=also, n=n, top_k=top_k, **settings)
    return carry_out(
        config, pipe=pipe, scorer=scorer, also=also, top_k=top_k, diverse=diverse, out=out, resume=resume,
        progress=progress, stop=stop,
    )  # fmt: skip


def carry_out(
    config: Mapping[str, Any],
    *,
    pipe: Any,
    scorer: Scorer,
    also: Sequence[Scorer] = (),
    top_k: int = 4,
    diverse: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[Ranked]:
    """Do what `configure` laid down; arguments, result and errors as in `generate`."""
    from sp_rerank.search.schedule import is_recording, strategy_of

    n, prompt = config["n"], config["prompt"]
    margin = margin_of(scorer)
    choose = _unlike(embedder(scorer), top_k) if diverse else None  # a scorer that cannot tell says so before the work
    sampler, strategy = sampler_of(config, pipe), strategy_of(config["search"])
    size = _image_bytes(pipe, config["height"], config["width"])
    with RunWriter.start(out, config, resume=resume, image_bytes=size) if out else nullcontext() as run:
        tally = _tally(n if diverse else top_k, scorer.name, run)
        enough = _enough(config, tally, margin)
        score, others = _scored_by(scorer, prompt), {one.name: _scored_by(one, prompt) for one in also}
        seeds = {index: config["seed"] + index for index in range(n)}
        made: dict[str | None, int] = {}
        search = strategy(sampler, score, seeds, top_k=top_k, known=tally.known()) if not enough() else iter(())
        with closing(_guarded(search)) as found:
            for one in found:
                if one.stage:
                    _see(one, others if is_recording(config["search"]) else {}, tally, run, config)
                else:
                    _take(one, others, tally, run, config)
                made[one.stage] = made.get(one.stage, 0) + len(one.batch.indices)
                if progress:
                    progress(_progress(one, tally, made[one.stage]))
                if stop and stop() and not (one.stage is None and len(tally.scores) >= one.total):
                    raise KeyboardInterrupt
                if enough():
                    break
        return _conclude(tally, run, config, choose, margin)


def _tally(top_k: int, scorer: str, run: RunWriter | None) -> _Tally:
    """What a run folder knows already."""
    tally = _Tally(top_k)
    if run:
        tally.seen = dict(run.seen)
        for row in run.rows.values():
            if row.status != "dropped":
                tally.add(row, scorer)
    return tally


def _progress(one: Scored, tally: _Tally, made: int) -> Progress:
    best = tally.best()
    seen = sum(any(stage.name == one.stage for stage in stages) for stages in tally.seen.values())
    done = seen if one.stage else len(tally.scores)
    return Progress(one.stage, done, made, one.total, tally.scores[best[0]] if best else math.nan)


def _unlike(embed: Callable[[Sequence[Image.Image]], Tensor], k: int) -> Choice:
    """What chooses, of candidates in order, the places of k that are no near-copies, the best first."""

    def choose(candidates: Sequence[Candidate], scores: Sequence[float]) -> list[int]:
        return sorted(diversity.diverse(scores, embed([one.image for one in candidates]).numpy(), k))

    return choose


def _enough(config: Mapping[str, Any], tally: _Tally, margin: float) -> Callable[[], bool]:
    """Whether the run's rules end it here."""
    rules, began = config.get("stop", {}), time.monotonic()

    def enough() -> bool:
        if not rules or not tally.scores:
            return False
        scores = [score if tally.status[index] == "ok" else math.nan for index, score in tally.scores.items()]
        next_batch = min(config["batch_size"], config["n"] - len(scores)) * max(tally.evaluations.values())
        why = stopping.reason_to_stop(
            rules, scores, config["n"], margin=margin, spent=tally.spent(), next_batch=next_batch,
            seconds=time.monotonic() - began,
        )  # fmt: skip
        if why:
            log.info("%s", why)
        return why is not None

    return enough


def sampler_of(config: Mapping[str, Any], pipe: Any, steps: int | None = None) -> Sampler:
    """The sampler that makes a run's candidates, perhaps with other steps."""
    from sp_rerank.diffusion.sampler import Sampler

    sizes = {name: config[name] for name in ("height", "width") if config[name]}
    return Sampler(
        pipe,
        config["prompt"],
        batch_size=config["batch_size"],
        guidance_scale=config["guidance_scale"],
        negative_prompt=config["negative_prompt"] or None,
        num_inference_steps=steps or config["steps"],
        **sizes,
    )


def _image_bytes(pipe: Any, height: int | None, width: int | None) -> int:
    """About what one PNG takes: half of its raw pixels."""
    size = getattr(getattr(pipe, "unet", None), "config", {}).get("sample_size", 64)
    side = (size if isinstance(size, int) else max(size)) * getattr(pipe, "vae_scale_factor", 8)
    return (height or side) * (width or side) * 3 // 2


def _scored_by(scorer: Scorer, prompt: str) -> Callable[[Tensor], Tensor]:
    def score(batch: Tensor) -> Tensor:
        try:
            scores = scorer.score(prompt, batch)
        except (
            SpRerankError,
            RuntimeError,
            MemoryError,
        ):  # an accelerator's errors are RuntimeErrors, and are told apart later
            raise
        except Exception as error:
            raise SpRerankError(
                f"the scorer {scorer.name} failed: {type(error).__name__}: {error}; what is done is kept, mend it and "
                "go on with --resume"
            ) from error
        if tuple(scores.shape) != (len(batch),):
            raise SpRerankError(f"{scorer.name} gave scores of shape {tuple(scores.shape)} for {len(batch)} images")
        return scores

    return score


def _guarded(batches: Iterator[Scored]) -> Generator[Scored]:
    """The batches of a search; an accelerator that fails becomes an error that tells how to go on."""
    try:
        yield from batches
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise TryAgainError(
                "out of memory while scoring; free some and resume the run, or start anew with a smaller batch size"
            ) from error
        if not is_device_lost(error):
            raise
        first = str(error).splitlines()[0]
        raise TryAgainError(f"the accelerator failed ({first}); what is done is kept: resume the run") from error


def to_images(batch: Tensor) -> list[Image.Image]:
    """(n, 3, H, W) float in [0, 1] to RGB images, rounded as diffusers rounds; what is not finite becomes black."""
    from PIL import Image

    pixels = batch.detach().float().nan_to_num(0, 0, 0).clamp(0, 1).mul(255).round().byte()
    return [Image.fromarray(array) for array in pixels.permute(0, 2, 3, 1).cpu().numpy()]


def _see(
    one: Scored,
    others: Mapping[str, Callable[[Tensor], Tensor]],
    tally: _Tally,
    run: RunWriter | None,
    config: Mapping[str, Any],
) -> None:
    """Keep what a search saw of candidates on the way; what is known from before stays as it was."""
    assert one.stage
    batch, usable, lines = one.batch, usable_scores(one), []
    columns = {name: score(batch.images).tolist() for name, score in others.items()}
    for place, image in enumerate(to_images(batch.images)):
        index, flagged = batch.indices[place], batch.flagged[place]
        if any(stage.name == one.stage for stage in tally.seen.get(index, ())):
            continue
        score = _finite(usable[index])
        also = {name: None if score is None else _finite(column[place]) for name, column in columns.items()}
        stage = Stage(one.stage, score, batch.nfe, flagged, also)
        tally.seen[index] = (*tally.seen.get(index, ()), stage)
        if run:
            candidate = Candidate(index, batch.seeds[place], image, flagged)
            lines.append((index, stage, _draft_png(candidate, config, stage)))
    if run and lines:
        run.see(lines)


def _finite(score: float) -> float | None:
    return score if math.isfinite(score) else None


def _take(
    one: Scored,
    others: Mapping[str, Callable[[Tensor], Tensor]],
    tally: _Tally,
    run: RunWriter | None,
    config: Mapping[str, Any],
) -> None:
    """Commit finished candidates to the folder and to the tally."""
    batch, usable, selecting = one.batch, usable_scores(one), config["scorers"][0]
    columns = {selecting: one.scores, **{name: score(batch.images) for name, score in others.items()}}
    made = []
    for place, image in enumerate(to_images(batch.images)):
        candidate = Candidate(batch.indices[place], batch.seeds[place], image, batch.flagged[place])
        finite = math.isfinite(usable[candidate.index])
        status: Status = "flagged" if candidate.flagged else "ok" if finite else "nonfinite"
        scores = {name: float(column[place]) if status == "ok" else math.nan for name, column in columns.items()}
        stages = tally.seen.get(candidate.index, ())
        finite_scores = {name: _finite(score) for name, score in scores.items()}
        png = to_png(candidate, config, {"scores": finite_scores})
        row = Row.of(
            png,
            index=candidate.index,
            seed=candidate.seed,
            status=status,
            scores=scores,
            unet_evaluations=batch.nfe + _spent(stages),
            batch_size=len(batch.indices),
            stages=stages,
        )
        made.append((candidate, row, png))
    if run:
        # what stands in the folder counts: a candidate made again may differ on another machine
        for row in run.commit([(row, png) for _, row, png in made]):
            tally.add(row, selecting)
    else:
        for candidate, row, _ in made:
            tally.add(row, selecting, candidate)
    tally.forget()


def to_png(candidate: Candidate, config: Mapping[str, Any], more: Mapping[str, Any]) -> bytes:
    """A candidate as a PNG file that tells how it was made, to other tools and to this one.

    Args:
        candidate: whose image it is.
        config: of its run.
        more: goes into our own record beside prompt, model, index and seed.
    """
    parameters = images.a1111_parameters(
        prompt=config["prompt"],
        negative_prompt=config["negative_prompt"],
        steps=config["steps"],
        sampler=config["scheduler"].removesuffix("Scheduler"),
        guidance_scale=config["guidance_scale"],
        seed=candidate.seed,
        size=candidate.image.size,
        model=config["model"],
    )
    return images.encode(candidate.image, parameters=parameters, record={**_origin(candidate, config), **more})


def _origin(candidate: Candidate, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": config["prompt"], "model": config["model"], "index": candidate.index, "seed": candidate.seed}


def _draft_png(candidate: Candidate, config: Mapping[str, Any], stage: Stage) -> bytes:
    """What a search saw as a PNG file; other tools get the prompt alone, for the run's own steps did not make it."""
    record = {**_origin(candidate, config), "stage": stage.name, "score": stage.score}
    return images.encode(candidate.image, parameters=config["prompt"], record=record)


def _conclude(
    tally: _Tally,
    run: RunWriter | None,
    config: Mapping[str, Any],
    choose: Choice | None,
    margin: float,
) -> list[Ranked]:
    """The best of a run that is over, its folder finished; complains only once everything is on the disk."""
    best, dropped = tally.best(), tally.dropped()
    if run:
        _commit_dropped(dropped, tally, run, config)
        tally.kept = {i: Candidate(i, config["seed"] + i, images.open_image(run.image(i))) for i in best}
    if choose and best:
        best = [best[place] for place in choose([tally.kept[i] for i in best], [tally.scores[i] for i in best])]
    if run:
        from sp_rerank.report.contact_sheet import contact_sheet
        from sp_rerank.report.gallery import write_gallery

        run.finish(
            best,
            grid=contact_sheet(run, [*tally.order(), *dropped], best, config["scorers"][0]),
            amend=lambda png, rank: images.amend_record(png, {"rank": rank}),
        )
        write_gallery(run)
    statuses = list(tally.status.values())
    unseen = [tally.seen[index][-1] for index in dropped]
    broken = statuses.count("nonfinite") + sum(stage.score is None and not stage.flagged for stage in unseen)
    if broken > NONFINITE_SHARE * (len(statuses) + len(dropped)):
        raise NothingUsableError(
            f"{broken} of {len(statuses) + len(dropped)} images or scores are not finite; run anew with --dtype float32"
        )
    if not best:
        raise NothingUsableError(
            f"none of {len(statuses)} images is usable: the safety checker replaced {statuses.count('flagged')}; "
            "try another prompt, other seeds, or --no-safety-checker if that is yours to decide"
        )
    return ranked([tally.kept[i] for i in best], [tally.scores[i] for i in best], margin)


def _commit_dropped(dropped: Sequence[int], tally: _Tally, run: RunWriter, config: Mapping[str, Any]) -> None:
    """Make the candidates that a search let fall part of the run, with the image that it saw last."""
    rows = []
    for index in dropped:
        if index not in run.rows:
            png = run.draft(index)
            row = Row.of(
                png,
                index=index,
                seed=config["seed"] + index,
                status="dropped",
                scores=dict.fromkeys(config["scorers"], math.nan),
                unet_evaluations=_spent(tally.seen[index]),
                batch_size=config["batch_size"],
                stages=tally.seen[index],
            )
            rows.append((row, png))
    if rows:
        run.commit(rows)
