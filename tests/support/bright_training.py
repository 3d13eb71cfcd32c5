"""python bright_training.py FOLDER IMAGES PROCESSES: the tiny encoder trained by several processes, for test_loop.

They are forked from one, which imports once.
"""

import os
import socket
import sys
from pathlib import Path

import torch
from torch.multiprocessing import start_processes

from sp_rerank.train import loop
from sp_rerank.train.preferences import PreferenceGroup
from support.bright_world import make_encoder, make_groups, make_recipe

RECIPE = make_recipe(steps=6, stage_1_steps=2, batch_size=7)


def train_in_process(index: int, out: Path, groups: list[PreferenceGroup], processes: int, port: int) -> None:
    """One of several, as accelerate's launcher would start it."""
    os.environ |= {
        "RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    loop.train(RECIPE, groups, scorer=make_encoder(), out=out, validation=groups[:3])


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def main() -> None:
    out, images, processes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)  # a forked child must not meet the threads of its parent
    arguments = (out, make_groups(images), processes, free_port())
    start_processes(train_in_process, arguments, nprocs=processes, start_method="fork")


if __name__ == "__main__":
    main()
