"""What a search yields, as what a run keeps: candidates with their scores, what was seen of them on the way.

Knows batches, scorers and rows. Knows nothing of where they are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TYPE_CHECKING

from sp_rerank.errors import TryAgainError, is_device_lost, is_out_of_memory
from sp_rerank.run.records import StageScore, Status
from sp_rerank.run.state import Finished, RunState
from sp_rerank.scorers.scoring import score_images
from sp_rerank.search.base import Scored, listed, usable_scores
from sp_rerank.stats.ranking import finite
from sp_rerank.storage.images import to_images
from sp_rerank.types import Candidate

if TYPE_CHECKING:
    from torch import Tensor

    from sp_rerank.types import Scorer


def score_batch(scorer: Scorer, prompt: str, batch: Tensor) -> Tensor:
    """(b,) float32 on the CPU."""
    import torch

    return torch.tensor(score_images(scorer, prompt, batch), dtype=torch.float32)


def guarded(batches: Iterator[Scored]) -> Generator[Scored]:
    """The batches of a search; an accelerator that fails becomes an error with the way to go on."""
    try:
        yield from batches
    except Exception as error:
        if is_out_of_memory(error):
            raise TryAgainError(
                "out of memory while scoring; free some and resume the run, or start anew with a smaller batch size"
            ) from error
        if is_device_lost(error):
            first = str(error).splitlines()[0]
            raise TryAgainError(f"the accelerator failed ({first}); what is done is kept, resume the run") from error
        raise


def _candidates(scored: Scored) -> list[Candidate]:
    batch = scored.batch
    return [
        Candidate(index, seed, image, flagged)
        for index, seed, image, flagged in zip(
            batch.indices, batch.seeds, to_images(batch.images), batch.flagged, strict=True
        )
    ]


def seen_candidates(
    scored: Scored, others: Mapping[str, Callable[[Tensor], Tensor]], state: RunState
) -> list[tuple[Candidate, StageScore]]:
    """What a search saw of candidates on the way; what is known from before is left out."""
    assert scored.stage
    usable = usable_scores(scored)
    columns = {name: listed(score(scored.batch.images)) for name, score in others.items()}
    seen: list[tuple[Candidate, StageScore]] = []
    for place, candidate in enumerate(_candidates(scored)):
        if any(known.stage == scored.stage for known in state.stages.get(candidate.index, ())):
            continue
        score = finite(usable[candidate.index])
        also = {name: None if score is None else finite(column[place]) for name, column in columns.items()}
        seen.append((candidate, StageScore(scored.stage, score, scored.batch.nfe, candidate.flagged, also)))
    return seen


def finished_candidates(
    scored: Scored, others: Mapping[str, Callable[[Tensor], Tensor]], state: RunState
) -> list[Finished]:
    """Finished candidates with their scores by every scorer."""
    batch, usable = scored.batch, usable_scores(scored)
    columns = {name: listed(score(batch.images)) for name, score in others.items()}
    columns = {state.first_scorer: listed(scored.scores), **columns}
    finished: list[Finished] = []
    for place, candidate in enumerate(_candidates(scored)):
        sound = math.isfinite(usable[candidate.index])
        status: Status = "flagged" if candidate.flagged else "ok" if sound else "nonfinite"
        scores = {name: column[place] if status == "ok" else math.nan for name, column in columns.items()}
        earlier = sum(seen.nfe for seen in state.stages.get(candidate.index, ()))
        finished.append(Finished(candidate, status, scores, batch.nfe + earlier, batch.batch_size))
    return finished
