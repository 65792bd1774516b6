"""Runs a function in several ranks on one machine: `size` gloo processes of one thread each, forked once.

They are forks of a server process that has imported torch and this package but computed nothing, so that a rank begins
after a few hundredths of a second instead of after the seconds of its imports.
"""

import contextlib
import itertools
import multiprocessing
import os
import socket
import sys
import tempfile
from pathlib import Path

import torch
import torch.multiprocessing as mp

from tests.short_preparation import shorten_preparation

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


PORTS = range(10_000, 32_000)  # below those that systems give out by themselves: Linux from 32,768 on
_places = itertools.count(7919 * os.getpid())  # in PORTS; processes that run tests at once begin far apart


def choose_port() -> int:
    """Returns a port of this machine that is free, and that hardly another test takes before its ranks listen on it."""
    for place in itertools.islice(_places, len(PORTS)):
        port = PORTS[place % len(PORTS)]
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no port of {PORTS} is free")


def on_ranks(size, function, *args):
    """Returns [function(*args) of rank 0, of rank 1, ...]. The function makes its own World."""
    multiprocessing.set_forkserver_preload(["tests.preloaded"])
    port = choose_port()
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            _rank,
            args=(size, port, folder, dict(os.environ), function, args),
            nprocs=size,
            start_method="forkserver",
        )
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _rank(rank, size, port, folder, environment, function, args):
    shorten_preparation()
    os.environ.clear()  # that of the server is as old as the server
    os.environ.update(environment)
    values = (rank, size, rank, size, "127.0.0.1", port)
    os.environ.update(zip(VARIABLES, map(str, values), strict=True))
    torch.set_num_threads(1)
    torch.save(function(*args), Path(folder) / f"{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # libraries that end their threads at exit have aborted the process, once in many runs


class one_thread:
    """Makes this process compute on one thread, as each of several ranks does."""

    def __enter__(self):
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_):
        torch.set_num_threads(self.before)
