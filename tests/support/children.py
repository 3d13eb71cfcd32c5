"""A forked child that is killed when something has happened."""

import os
import time
import warnings
from collections.abc import Callable

import torch


def in_child(act: Callable[[], None], until: Callable[[], bool] = lambda: False) -> bool:
    """Run in a forked child, which is killed when something has happened; whether it came to its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks among threads, which the child does not use
        child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            act()
            os._exit(0)
        finally:
            os._exit(7)
    while not until():
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            assert os.waitstatus_to_exitcode(status) in (0, -9)
            return status == 0
        time.sleep(0.002)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False
