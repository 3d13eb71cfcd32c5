"""python writer.py FOLDER [options]: commits 100 small candidates in fixed batches of 8, as a generation does.

The images depend on their index alone, so that two folders can be compared byte by byte. Exits with the code of the
error, its message on stderr. Prints "ready" before the folder is opened and "open" after it.
"""

import argparse
import hashlib
import math
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

from PIL import Image

from sp_rerank.config import Stage
from sp_rerank.errors import SpRerankError
from sp_rerank.run.records import StageScore
from sp_rerank.run.writer import RunWriter
from sp_rerank.storage import atomic, images
from support.runs import row_of as make_row
from support.runs import run_config, summary_of

BATCH = 8
LARGE = 60  # this one alone is a large file


def candidate(index):
    """The PNG file and the scores of one candidate."""
    noise = random.Random(index)
    side = 100 if index == LARGE else 8
    image = Image.frombytes("RGB", (side, side), noise.randbytes(3 * side * side))
    score = noise.random() if index % 10 else float("nan")
    png = images.encode(image, parameters="a lemon\nSteps: 2", record={"index": index})
    return png, {"test": score}


def row_of(index, seed):
    png, scores = candidate(index)
    status = "ok" if index % 10 else "nonfinite"
    finite = {name: score if math.isfinite(score) else None for name, score in scores.items()}
    row = make_row(png, index, seed=seed + index, status=status, scores=finite, nfe=2, batch_size=BATCH)
    return row, png


def draw_grid(run):
    atomic.write(run.path / "grid.png", candidate(0)[0])


def write_run(folder, *, n=100, seed=0, resume=False, pause=0.0, made=None, opened=lambda: None):
    """Write the run, or what is missing of it; a line of the file `made` for each batch that is made."""
    config = run_config(n, seed=seed)
    with RunWriter.start(folder, config, resume=resume, image_bytes=1000) as run:
        opened()
        for first in range(0, n, BATCH):
            batch = range(first, min(first + BATCH, n))
            if set(batch).isdisjoint(run.missing):
                continue
            if made:
                with made.open("a") as file:
                    file.write(f"{first}\n")
            run.commit([row_of(index, seed) for index in batch])
            time.sleep(pause)
        best = [index for index in (7, 3, 1) if index < n]
        run.finish(best, summary_of(*best, n=n), draw_grid)


ROUNDS = ((Stage("draft", 2, 3), 1), (Stage("draft", 3), 2))
"""Where all are seen, and where every second one is."""


def write_search(folder, *, n, resume=False):
    """Write a run as a search of two rounds does: the even ones seen twice and finished, the others dropped.

    Returns:
        What was scored: (index, stage), and (index, None) of the finished.
    """
    config, scored = run_config(n, seed=0), []
    with RunWriter.start(folder, config, resume=resume) as run:
        for stage, every in ROUNDS:
            for first in range(0, n, BATCH):
                known = {index for index, seen in run.stages.items() if any(entry.stage == stage for entry in seen)}
                new = [index for index in range(first, min(first + BATCH, n), every) if index not in known]
                if new:
                    seen = {index: StageScore(stage, index / n, 2) for index in new}
                    run.commit_stages([(index, seen[index], stage_png(index, stage)) for index in new])
                    scored += [(index, stage) for index in new]
        finished, dropped = ([index for index in run.missing if index % 2 == odd] for odd in (0, 1))
        scored += [(index, None) for index in finished]
        for indices in filter(None, (finished, dropped)):
            run.commit([searched_row(run, index, dropped=index % 2 == 1) for index in indices])
        run.finish([0, 2], summary_of(0, 2, n=n))
    return scored


def stage_png(index, stage):
    """What is seen of a candidate at a stage."""
    return candidate(1000 * stage.at + index)[0]


def searched_row(run, index, *, dropped):
    row, png = row_of(index, 0)
    if dropped:
        png = run.draft(index)
        row = replace(row, status="dropped", sha256=hashlib.sha256(png).hexdigest())
    return replace(row, stages=run.stages[index]), png


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds after each batch")
    parser.add_argument("--made", type=Path, help="file that gets a line for each batch made")
    parser.add_argument("--file-limit", type=int, help="bytes that a file can have")
    parser.add_argument("--hold", action="store_true", help="wait for the end of stdin once the folder is open")
    arguments = parser.parse_args()
    if arguments.file_limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (arguments.file_limit, arguments.file_limit))

    def opened():
        print("open", flush=True)
        if arguments.hold:
            sys.stdin.read()

    print("ready", flush=True)
    try:
        write_run(
            arguments.folder,
            seed=arguments.seed,
            resume=arguments.resume,
            pause=arguments.pause,
            made=arguments.made,
            opened=opened,
        )
    except SpRerankError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
