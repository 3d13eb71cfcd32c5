"""Options + pipeline + scorer -> the best of N candidates, kept in memory or in a run folder.

Resolves what is asked into a `RunConfig`, then runs its search into a store. Knows samplers, searches and scorers by
what they share; knows nothing of how images are made, what a score means, or what a folder holds.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

from sp_rerank.config import GenerationKeywords, GenerationOptions, RunConfig
from sp_rerank.errors import NothingUsableError, OptionError
from sp_rerank.rank import ranked
from sp_rerank.report.progress import shown
from sp_rerank.run.layout import run_folder_name
from sp_rerank.run.memory import MemoryRun
from sp_rerank.run.state import RunState, Store
from sp_rerank.run.summary import Ended, RunResult, RunSummary
from sp_rerank.run.writer import RunWriter
from sp_rerank.scorers.calibration import margin_by_sigma, margin_of
from sp_rerank.scorers.ensemble import asked_first, with_members
from sp_rerank.scorers.scoring import embedder, refuse_pairs
from sp_rerank.search.base import Scored
from sp_rerank.search.candidates import finished_candidates, guarded, score_batch, seen_candidates
from sp_rerank.stats import diversity, stopping
from sp_rerank.types import Progress

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from sp_rerank.diffusion.batches import Batch
    from sp_rerank.diffusion.memory_limit import MemoryLimit
    from sp_rerank.run.folder import RunDir
    from sp_rerank.types import Scorer

log = logging.getLogger(__name__)

NONFINITE_SHARE = 0.1  # of the candidates; above it the precision is to blame, not the seeds


@overload
def generate(
    prompt: str, *, pipe: Any, scorer: Scorer, also: Sequence[Scorer] = (), out: str | Path | None = None,
    resume: bool = False, progress: Callable[[Progress], None] | bool = True, stop: Callable[[], bool] | None = None,
    **options: Unpack[GenerationKeywords],
) -> RunResult: ...  # fmt: skip
@overload
def generate(
    prompt: list[str] | tuple[str, ...], *, pipe: Any, scorer: Scorer, also: Sequence[Scorer] = (),
    out: str | Path | None = None, resume: bool = False, progress: Callable[[Progress], None] | bool = True,
    stop: Callable[[], bool] | None = None, **options: Unpack[GenerationKeywords],
) -> list[RunResult]: ...  # fmt: skip
def generate(
    prompt: str | list[str] | tuple[str, ...],
    *,
    pipe: Any,
    scorer: Scorer,
    also: Sequence[Scorer] = (),
    out: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | bool = True,
    stop: Callable[[], bool] | None = None,
    **options: Unpack[GenerationKeywords],
) -> RunResult | list[RunResult]:
    """Make n candidates for a prompt, or for each of several, rank them, and return the best k.

    A complete run folder that is asked for a larger `n`, or for `more`, grows: only the new candidates are made.

    Args:
        prompt: What the images should show. Of several prompts all are checked before the first is begun.
        pipe: A diffusers text-to-image pipeline, from `sp_rerank.load_pipeline` or your own.
        scorer: Ranks the candidates; from `sp_rerank.load_scorer` or your own.
        also: Other scorers, whose scores of every finished candidate are kept too; they choose nothing.
        out: The run folder, written as the run goes on; None keeps the best in memory only. Of several prompts the
            folder of their run folders.
        resume: Go on with a run folder that holds a part of this very run.
        progress: Called after each batch, and within it at each call of the denoiser; True shows a bar where there is a
            terminal or a notebook to show it, False none.
        stop: Asked after each batch; when it returns True, the run ends with KeyboardInterrupt, nothing lost.
        **options: The fields of `sp_rerank.config.GenerationOptions`: n, top_k, seed, steps, search, ...

    Returns:
        The best usable candidates, the best first, with what the run spent and how it ended; of several prompts a list
        of that, in their order.

    Raises:
        UsageError: If an option is out of its range, or `out` holds another run.
        NothingUsableError: If every image was flagged, or more than a tenth were not finite. The folder is complete.
            Of several prompts it is a log warning, and the result of that prompt says so.
        TryAgainError: If the accelerator failed or ran out of memory.
        FolderBusyError: If another process writes to `out`.
        StorageError: If `out` cannot be written.

    Example:
        >>> best = generate("a lemon", pipe=load_pipeline("mini"), scorer=load_scorer("clip-mini"), n=20, top_k=1)
        >>> best[0].image.save("lemon.png")
    """
    from sp_rerank.search.resolve import resolve

    _check_names(options)
    asked, also = GenerationOptions(**options), with_members(scorer, also)
    if isinstance(prompt, str):
        job = Job(resolve(prompt, asked, pipe=pipe, scorer=scorer, also=also), asked, pipe, scorer, also)
        with shown(progress, job.config.n) as show:
            return run_search(job, out=out, resume=resume, progress=show, stop=stop)
    configs = [resolve(each, asked, pipe=pipe, scorer=scorer, also=also) for each in prompt]
    results: list[RunResult] = []
    for config in configs:
        job, folder = Job(config, asked, pipe, scorer, also), out and Path(out) / run_folder_name(config)
        opening = store_for(job, folder, resume)
        with shown(progress, config.n) as show:
            result, state = search_into(opening, job, progress=show, stop=stop, out=folder)
        try:
            check_usable(state, result.summary)
        except NothingUsableError as error:
            log.warning("%r: %s", config.prompt, error)
        results.append(result)
    return results


def _check_names(options: Mapping[str, object]) -> None:
    """Raise Python's TypeError for a keyword that is no option, in the name of the function that was called."""
    known = [entry.name for entry in fields(GenerationOptions)]
    for name in options:
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"generate() got an unexpected keyword argument {name!r}{hint}")


@dataclass(frozen=True, slots=True)
class Job:
    """A resolved run with the models that make it.

    Attributes:
        config: Of the run.
        options: What was asked; of these only what is kept of the result is read.
        pipe: Makes the images.
        scorer: Ranks them.
        also: Other scorers whose scores are kept.
        memory_limit: What earlier runs of the pipeline found to fit into memory.
        batches: All candidates, where they were made in calls that other runs shared; None makes them.
    """

    config: RunConfig
    options: GenerationOptions
    pipe: Any
    scorer: Scorer
    also: Sequence[Scorer] = ()
    memory_limit: MemoryLimit | None = None
    batches: Sequence[Batch] | None = None


def run_search(
    job: Job,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> RunResult:
    """Carry out a run; arguments, result and errors as in `generate`."""
    result, state = search_into(store_for(job, out, resume), job, progress=progress, stop=stop, out=out)
    check_usable(state, result.summary)
    return result


def search_into(
    opening: AbstractContextManager[Store],
    job: Job,
    *,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    out: str | Path | None = None,
) -> tuple[RunResult, RunState]:
    """Carry out a run into a store, which is opened once it is known that the run can be.

    A run of which too little is usable comes back too; `check_usable` refuses it. Errors otherwise as in `generate`.

    Args:
        opening: Opens the store.
        job: What is to be done.
        progress: Called as in `generate`.
        stop: Asked after each batch, as in `generate`.
        out: The folder of the store, for the result.
    """
    from sp_rerank.diffusion.sampler import sampler_of

    refuse_pairs(asked_first(job.scorer), *job.also)
    diverse = job.options.diverse
    embed = embedder(job.scorer) if diverse else None  # a scorer without embeddings is refused before the work
    sampler_of(job.config, job.pipe)  # so is what the pipeline does not take
    margin = margin_of(job.scorer)
    with opening as store:
        state, began, made = store.state, time.monotonic(), 0
        config = state.config  # of the folder: perhaps a larger run than was asked for, in other parts
        asked = asked_first(job.scorer)
        others = {other.name: partial(score_batch, other, config.prompt) for other in job.also if other is not asked}
        ended, stage = _ending(state, margin, began), None
        score = partial(score_batch, asked, config.prompt)
        latest = Progress(None, len(state.finished), 0, config.n, math.nan)
        on_step = (lambda share: progress(replace(latest, in_hand=share))) if progress else None
        with closing(guarded(iter(()) if ended else _search(job, state, score, on_step))) as batches:
            for scored in batches:
                if scored.stage:
                    store.add_stages(seen_candidates(scored, others if config.search.records else {}, state))
                else:
                    store.add(finished_candidates(scored, others, state))
                made = len(scored.batch.indices) + (made if scored.stage == stage else 0)
                stage, done = scored.stage, state.reached(scored.stage)
                if progress:
                    best = max((state.score(index) for index in state.best(1)), default=math.nan)
                    latest = Progress(stage.label if stage else None, done, made, scored.total, best)
                    progress(latest)
                if stop and stop() and not (stage is None and done >= scored.total):
                    raise KeyboardInterrupt
                ended = _ending(state, margin, began)
                if ended:
                    break
        store.add_dropped()
        return _concluded(store, job, ended or Ended(), embed, margin, out), state


def _search(
    job: Job, state: RunState, score: Callable[[Tensor], Tensor], on_step: Callable[[float], None] | None
) -> Iterator[Scored]:
    """What the run lacks, made and scored a batch at a time; `on_step` as of a `Sampler`."""
    from sp_rerank.diffusion.sampler import sampler_of
    from sp_rerank.search.parts import search_parts

    if job.batches is not None:
        return (Scored(batch, score(batch.images), None, state.n) for batch in job.batches)
    sampler = sampler_of(state.config, job.pipe, memory_limit=job.memory_limit)
    sampler.on_step = on_step
    return search_parts(sampler, score, state, top_k=job.options.kept)


def store_for(job: Job, out: str | Path | None, resume: bool) -> AbstractContextManager[Store]:
    """Where the candidates are kept: a folder, or memory."""
    if out is None:
        if job.options.more:
            raise OptionError("more", job.options.more, "none: a run that is kept in memory has no folder to add to")
        anyone = job.options.diverse or job.config.members  # whose rank changes with every other candidate
        return nullcontext(MemoryRun(job.config, job.config.n if anyone else job.options.kept))
    each = _image_bytes(job.pipe, job.config.height, job.config.width)
    return RunWriter.start(out, job.config, resume=resume, more=job.options.more, image_bytes=each)


def _ending(state: RunState, margin: float, began: float) -> Ended | None:
    """Which of the run's rules ends it here; None where none does."""
    config = state.config
    if not config.stop or not (finished := state.finished):
        return None
    next_nfe = min(config.batch_size, config.n - len(finished)) * state.nfe_each
    spent = stopping.Spent(nfe=state.nfe, next_nfe=next_nfe, seconds=time.monotonic() - began)
    scores = [state.score(index) for index in finished]
    reason = stopping.reason_to_stop(config.stop, scores, config.n, margin=margin, spent=spent)
    return Ended(*reason) if reason else None


def _image_bytes(pipe: Any, height: int | None, width: int | None) -> int:
    """About what one PNG takes: half of its raw pixels."""
    size = getattr(getattr(pipe, "unet", None), "config", {}).get("sample_size", 64)
    side = (size if isinstance(size, int) else max(size)) * getattr(pipe, "vae_scale_factor", 8)
    return (height or side) * (width or side) * 3 // 2


def _concluded(
    store: Store,
    job: Job,
    ended: Ended,
    embed: Callable[[Sequence[Image.Image]], Tensor] | None,
    margin: float,
    out: str | Path | None,
) -> RunResult:
    """The result of a run that is over, its folder finished."""
    state, kept = store.state, job.options.kept
    best = state.best(state.n if embed else kept)
    candidates = {index: store.candidate(index) for index in best}
    cost = 0.0
    if embed and best:
        scores = [state.score(index) for index in best]
        places = diversity.diverse(scores, embed([candidates[index].image for index in best]).numpy(), kept)
        cost = diversity.score_cost(scores, places)
        best = [best[place] for place in sorted(places)]
    margin = margin or margin_by_sigma(job.scorer, job.config.prompt, [candidates[i].image for i in best])
    chosen = ranked([candidates[i] for i in best], [state.score(i) for i in best], margin, job.config.prompt)
    summary = RunSummary(
        best=tuple(best),
        tie_groups=tuple(entry.tie_group for entry in chosen),
        ended=ended,
        n=state.n,
        made=len(state.rows),
        nfe=state.nfe,
        nfe_exhaustive=state.nfe_each * state.n,
        flagged=state.count("flagged"),
        nonfinite=state.count("nonfinite"),
        dropped=state.count("dropped"),
        score_cost=max(0.0, cost),
        margin=margin,
    )
    store.finish(best, summary, _present)
    return RunResult(tuple(chosen), summary, None if out is None else Path(out))


def _present(run: RunDir) -> None:
    """Draw the pages of a run folder."""
    from sp_rerank.report.contact_sheet import write_contact_sheet
    from sp_rerank.report.gallery import write_gallery

    write_contact_sheet(run)
    write_gallery(run)


def check_usable(state: RunState, summary: RunSummary) -> None:
    """Refuse a run of which too little is usable.

    Raises:
        NothingUsableError: If more than a tenth of the candidates is not finite, or none is usable.
    """
    unseen = [seen[-1] for index, seen in state.stages.items() if state.rows[index].status == "dropped"]
    broken = summary.nonfinite + sum(seen.score is None and not seen.flagged for seen in unseen)
    if broken > NONFINITE_SHARE * summary.made:
        raise NothingUsableError(
            f"{broken} of {summary.made} images or scores are not finite; run anew in full precision (dtype float32)"
        )
    if not summary.best:
        raise NothingUsableError(
            f"none of {summary.made} images is usable: the safety checker replaced {summary.flagged}; "
            "try another prompt, other seeds, or leave the safety checker out if that is yours to decide"
        )
