"""python -m support.batch_driver FOLDER PROMPTS WORLD [options]: a batch of a world of `batch_worlds`, as a process.

Prints a line for each outcome. Exits with the code of the error, its message on stderr.
"""

from __future__ import annotations

import argparse
import signal
import sys

from sp_rerank.batch.drive import Rules
from sp_rerank.batch.order import Models
from sp_rerank.batch.prompt_batch import BatchSettings, PromptBatch
from sp_rerank.batch.prompts import read_prompts
from sp_rerank.batch.shards import parse_shard
from sp_rerank.errors import SpRerankError
from support import batch_worlds


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("prompts")
    parser.add_argument("world", nargs="?", default="poisoned")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--engine", default="local")
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--timeout", type=float, default=60)
    parser.add_argument("--factor", type=float, default=20)
    parser.add_argument("--grace", type=float, default=25)
    given = parser.parse_args()
    rules = Rules(timeout=given.timeout, timeout_factor=given.factor, grace=given.grace)
    settings = BatchSettings(engine=given.engine, workers=given.workers, shard=parse_shard(given.shard), rules=rules)
    models = Models.of(getattr(batch_worlds, given.world))
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append("SIGTERM"))
    try:
        batch = PromptBatch(
            read_prompts(given.prompts), given.folder, models=models, settings=settings, n=8, batch_size=4, steps=2,
            guidance_scale=1.0,
        )  # fmt: skip
        for outcome in batch.run(lambda: asked[0] if asked else None):
            print(outcome.id, outcome.status, flush=True)
    except SpRerankError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
