"""Glue: sampler x search x scorer -> a ranking, kept in memory or in a run folder."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_rerank import images, models, prompts, ranking
from sp_rerank.errors import NothingUsableError, SpRerankError, TryAgainError, UsageError
from sp_rerank.existing import ranked
from sp_rerank.manifest import Row, Status
from sp_rerank.run import RunDir, RunWriter
from sp_rerank.types import Candidate, Ranked

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from sp_rerank.sampling import Batch, Sampler
    from sp_rerank.types import Scorer

log = logging.getLogger(__name__)

NONFINITE_SHARE = 0.1  # of the candidates; above it the precision is to blame, not the seeds
MAX_SEED = 2**63 - 1
LOST_ACCELERATOR = ("CUDA error", "HIP error", "device-side assert", "MPS backend")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        done: candidates that the run holds.
        made: those of them that were made by this call.
        total: candidates that it will hold.
        best: the best usable score so far, NaN before there is one.
    """

    done: int
    made: int
    total: int
    best: float


@dataclass
class _Tally:
    """Statuses and scores of the candidates so far, by index, and the images that may still be among the best."""

    top_k: int
    status: dict[int, Status] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    kept: dict[int, Candidate] = field(default_factory=dict)

    def add(self, index: int, status: Status, score: float, candidate: Candidate | None = None) -> None:
        self.status[index], self.scores[index] = status, score
        if candidate:
            self.kept[index] = candidate

    def best(self) -> list[int]:
        indices = sorted(self.scores)
        scores = [self.scores[i] for i in indices]
        return [indices[place] for place in ranking.top(scores, self.top_k, [self.status[i] != "ok" for i in indices])]

    def forget(self) -> None:
        """Let go of the images that are no longer among the best."""
        best = set(self.best())
        self.kept = {index: candidate for index, candidate in self.kept.items() if index in best}


def generate(
    prompt: str,
    *,
    pipe: Any,
    scorer: Scorer,
    n: int = 100,
    top_k: int = 4,
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
        n: number of candidates.
        top_k: how many to return, at most n; fewer come back where fewer are usable.
        out: the run folder, written as the run goes on; None keeps the best in memory only.
        resume: go on with a run folder that holds a part of this very run.
        progress: called after each batch.
        stop: asked after each batch; when it says True, the run ends with KeyboardInterrupt, nothing lost.
        **settings: seed, batch_size, search, steps, guidance_scale, negative_prompt, height, width, strict: see
            `configure`.

    Returns:
        The best usable candidates, the best first.

    Raises:
        UsageError: if an argument is out of its range, or `out` holds another run.
        NothingUsableError: if every image was flagged, or more than a tenth were not finite. The folder is complete.
        TryAgainError: if the accelerator failed or ran out of memory.
        FolderBusyError, StorageError: see `sp_rerank.run.RunWriter`.

    Example:
        >>> best = generate("a lemon", pipe=load_pipeline("mini"), scorer=load_scorer("clip-mini"), n=20, top_k=1)
        >>> best[0].candidate.image.save("lemon.png")
    """
    config = configure(prompt, pipe=pipe, scorer=scorer, n=n, **settings)
    return carry_out(
        config, pipe=pipe, scorer=scorer, top_k=top_k, out=out, resume=resume, progress=progress, stop=stop
    )


def configure(
    prompt: str,
    *,
    pipe: Any,
    scorer: Scorer,
    n: int = 100,
    seed: int = 0,
    batch_size: int | None = None,
    search: str = "exhaustive",
    steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    strict: bool = False,
) -> dict[str, Any]:
    """What makes a run this run and no other: run.json without its schema.

    Device, precision, batch size and versions are part of it: with any of them changed the pixels change.

    Args:
        prompt: what the images should show.
        pipe: makes them.
        scorer: ranks them.
        n: number of candidates.
        seed: candidate i has the seed `seed + i`.
        batch_size: images made at once; None, like the next two, takes what suits the model and the device.
        search: how the budget is spent, a name of `sp_rerank.search.STRATEGIES`.
        steps: of the scheduler.
        guidance_scale: of classifier-free guidance.
        negative_prompt: what the images should not show.
        height: in pixels; None takes the model's own.
        width: in pixels.
        strict: refuse a prompt that the model or the scorer cannot read to its end, instead of a warning.

    Raises:
        UsageError: if an argument is out of its range, or the prompt is too long with `strict`.
    """
    check_arguments(
        prompt, n=n, seed=seed, batch_size=batch_size, search=search, steps=steps, guidance_scale=guidance_scale,
        negative_prompt=negative_prompt, height=height, width=width,
    )  # fmt: skip
    trained = getattr(getattr(pipe.scheduler, "config", None), "num_train_timesteps", None)
    if steps and trained and steps > trained:
        raise UsageError(f"--steps is {steps}; expected at most {trained}, the steps that the model was trained with")
    lost = [str(cut) for cut in prompts.truncations(pipe, scorer, prompt)]
    if lost and strict:
        raise UsageError(f"the prompt is too long: {'; '.join(lost)}")
    for cut in lost:
        log.warning("%s", cut)
    suited_steps, suited_guidance, suited_batch = models.suited(pipe)
    model, revision = models.origin_of(pipe)
    return {
        "prompt": prompt,
        "negative_prompt": negative_prompt or "",
        "truncated": lost,
        "model": model,
        "revision": revision,
        "pipeline": type(pipe).__name__,
        "safety_checker": getattr(pipe, "safety_checker", None) is not None,
        "scorers": [scorer.name],
        "search": search,
        "steps": steps or suited_steps,
        "guidance_scale": suited_guidance if guidance_scale is None else guidance_scale,
        "scheduler": type(pipe.scheduler).__name__,
        "height": height,
        "width": width,
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "device": pipe.device.type,
        "batch_size": min(n, batch_size or suited_batch),
        "n": n,
        "seed": seed,
        "versions": {name: version(name) for name in ("sp-rerank", "torch", "diffusers", "transformers")},
    }


def carry_out(
    config: Mapping[str, Any],
    *,
    pipe: Any,
    scorer: Scorer,
    top_k: int = 4,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[Ranked]:
    """Do what `configure` laid down; arguments, result and errors as in `generate`."""
    from sp_rerank.search import STRATEGIES

    n, batch_size, seed = config["n"], config["batch_size"], config["seed"]
    if not 1 <= top_k <= n:
        raise UsageError(f"--top-k is {top_k}; expected 1 to {n}, the number of candidates")
    sampler, strategy = sampler_of(config, pipe), STRATEGIES[config["search"]]
    size = _image_bytes(pipe, config["height"], config["width"])
    with RunWriter.start(out, config, resume=resume, image_bytes=size) if out else nullcontext() as run:
        tally = _Tally(top_k)
        for row in run.rows.values() if run else ():
            tally.add(row.index, row.status, _score_of(row.scores, scorer.name))
        before = len(tally.scores)
        seeds = {index: seed + index for index in _unfinished_batches(n, batch_size, run)}
        score = _scored_by(scorer, config["prompt"])
        for batch, scores in _guarded(strategy(sampler, score, seeds, top_k=top_k)):
            _take(batch, scores, tally, run, config)
            if progress:
                best = tally.best()
                done = len(tally.scores)
                progress(Progress(done, done - before, n, tally.scores[best[0]] if best else math.nan))
            if stop and stop() and len(tally.scores) < n:
                raise KeyboardInterrupt
        return _conclude(tally, run, scorer.name, seed)


def sampler_of(config: Mapping[str, Any], pipe: Any, steps: int | None = None) -> Sampler:
    """The sampler that makes a run's candidates, perhaps with other steps."""
    from sp_rerank.sampling import Sampler

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


def check_arguments(
    prompt: str,
    *,
    n: int,
    seed: int,
    batch_size: int | None,
    search: str,
    steps: int | None,
    guidance_scale: float | None,
    negative_prompt: str | None,
    height: int | None,
    width: int | None,
) -> None:
    """Refuse what cannot be meant, before anything is loaded.

    Raises:
        UsageError: naming the argument, what was expected and what came.
    """
    from sp_rerank.search import STRATEGIES

    if not prompt.strip():
        raise UsageError("the prompt is empty; expected words that say what the image should show")
    for text in (prompt, negative_prompt or ""):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError("a prompt holds bytes that are no UTF-8; expected text") from error
        if "\0" in text:
            raise UsageError("a prompt holds a NUL character; expected text")
    if n < 1:
        raise UsageError(f"--n is {n}; expected at least 1 candidate")
    if not 0 <= seed <= MAX_SEED - n:
        raise UsageError(f"--seed is {seed}; expected 0 to {MAX_SEED - n}")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"--batch-size is {batch_size}; expected at least 1")
    if steps is not None and steps < 1:
        raise UsageError(f"--steps is {steps}; expected at least 1")
    if guidance_scale is not None and not (math.isfinite(guidance_scale) and guidance_scale >= 0):
        raise UsageError(f"--guidance-scale is {guidance_scale}; expected a number from 0")
    for side, pixels in (("height", height), ("width", width)):
        if pixels is not None and (pixels < 8 or pixels % 8):
            raise UsageError(f"--{side} is {pixels}; expected a multiple of 8 pixels")
    if search not in STRATEGIES:
        raise UsageError(f"no search {search!r}; expected one of {', '.join(STRATEGIES)}")


def _image_bytes(pipe: Any, height: int | None, width: int | None) -> int:
    """About what one PNG takes: half of its raw pixels."""
    size = getattr(getattr(pipe, "unet", None), "config", {}).get("sample_size", 64)
    side = (size if isinstance(size, int) else max(size)) * getattr(pipe, "vae_scale_factor", 8)
    return (height or side) * (width or side) * 3 // 2


def _score_of(scores: Mapping[str, float | None], name: str) -> float:
    score = scores.get(name)
    return math.nan if score is None else score


def _unfinished_batches(n: int, batch_size: int, run: RunDir | None) -> list[int]:
    """The indices of every batch of which a candidate is missing: a batch is made whole or not at all."""
    missing = {index // batch_size for index in (run.missing if run else range(n))}
    return [index for index in range(n) if index // batch_size in missing]


def _scored_by(scorer: Scorer, prompt: str) -> Callable[[Tensor], Tensor]:
    def score(batch: Tensor) -> Tensor:
        scores = scorer.score(prompt, batch)
        if tuple(scores.shape) != (len(batch),):
            raise SpRerankError(f"{scorer.name} gave scores of shape {tuple(scores.shape)} for {len(batch)} images")
        return scores

    return score


def _guarded(batches: Any) -> Any:
    """The batches of a search; an accelerator that fails becomes an error that tells how to go on."""
    import torch

    try:
        yield from batches
    except torch.OutOfMemoryError as error:
        raise TryAgainError(
            "out of memory while scoring; free some and go on with --resume, or start anew with a smaller --batch-size"
        ) from error
    except RuntimeError as error:
        if not any(mark in str(error) for mark in LOST_ACCELERATOR):
            raise
        first = str(error).splitlines()[0]
        raise TryAgainError(
            f"the accelerator failed ({first}); what is done is kept, run again with --resume"
        ) from error


def to_images(batch: Tensor) -> list[Image.Image]:
    """(n, 3, H, W) float in [0, 1] to RGB images, rounded as diffusers rounds; what is not finite becomes black."""
    from PIL import Image

    pixels = batch.detach().float().nan_to_num(0, 0, 0).clamp(0, 1).mul(255).round().byte()
    return [Image.fromarray(array) for array in pixels.permute(0, 2, 3, 1).cpu().numpy()]


def _take(batch: Batch, scores: Tensor, tally: _Tally, run: RunWriter | None, config: Mapping[str, Any]) -> None:
    """Commit a batch to the folder and to the tally."""
    sound = batch.images.flatten(1).isfinite().all(dim=1).tolist()
    (scorer,) = config["scorers"]
    candidates, rows = [], []
    for place, image in enumerate(to_images(batch.images)):
        candidate = Candidate(batch.indices[place], batch.seeds[place], image, batch.flagged[place])
        score = float(scores[place])
        finite = sound[place] and math.isfinite(score)
        status: Status = "flagged" if candidate.flagged else "ok" if finite else "nonfinite"
        candidates.append((candidate, status, score if status == "ok" else math.nan))
    if run:
        for candidate, status, score in candidates:
            png = to_png(candidate, config, {"scores": {scorer: score if status == "ok" else None}})
            row = Row.of(
                png,
                index=candidate.index,
                seed=candidate.seed,
                status=status,
                scores={scorer: score},
                unet_evaluations=batch.unet_evaluations,
                batch_size=len(batch.indices),
            )
            rows.append((row, png))
        # what stands in the folder counts: a candidate made again may differ on another machine
        for row in run.commit(rows):
            tally.add(row.index, row.status, _score_of(row.scores, scorer))
    else:
        for candidate, status, score in candidates:
            tally.add(candidate.index, status, score, candidate)
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
    record = {"prompt": config["prompt"], "model": config["model"], "index": candidate.index, "seed": candidate.seed}
    return images.encode(candidate.image, parameters=parameters, record={**record, **more})


def _conclude(tally: _Tally, run: RunWriter | None, scorer: str, seed: int) -> list[Ranked]:
    """The best of a complete run, its folder finished; complains only once everything is on the disk."""
    best = tally.best()
    if run:
        from sp_rerank.report.grid import contact_sheet

        order = ranking.order([tally.scores[i] for i in range(run.n)], [tally.status[i] != "ok" for i in range(run.n)])
        run.finish(
            best,
            grid=contact_sheet(run, order, len(best), scorer),
            amend=lambda png, rank: images.amend_record(png, {"rank": rank}),
        )
        tally.kept = {i: Candidate(i, seed + i, images.open_image(run.image(i))) for i in best}
    statuses = list(tally.status.values())
    broken = statuses.count("nonfinite")
    if broken > NONFINITE_SHARE * len(statuses):
        raise NothingUsableError(
            f"{broken} of {len(statuses)} images or scores are not finite; run anew with --dtype float32"
        )
    if not best:
        raise NothingUsableError(
            f"none of {len(statuses)} images is usable: the safety checker replaced {statuses.count('flagged')}; "
            "try another prompt, other seeds, or --no-safety-checker if that is yours to decide"
        )
    return ranked([tally.kept[i] for i in best], [tally.scores[i] for i in best])
