"""The HTTP server around an application: uvicorn with the limits of connections.py."""

from __future__ import annotations

import gc
import resource
import socket
from dataclasses import replace
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from fledgling.config import UserError
from fledgling.serve.connections import ConnectionLimits, ConnectionTable, LimitedProtocol

ACCEPTS_PER_TURN = 32  # connections that the event loop accepts before it does something else: about 3 ms
BACKLOG = 1024  # connections that the kernel completes and keeps until they are accepted
MAX_FILES = 65_536
RESERVED_FILES = 128  # descriptors that are not connections


class Server(uvicorn.Server):
    """uvicorn's server; its sockets have a long backlog, of which the event loop takes a few at a time."""

    def __init__(self, app: ASGIApp, limits: ConnectionLimits) -> None:
        self.table = ConnectionTable(limits)
        protocol: Any = partial(LimitedProtocol, table=self.table)
        settings = uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_level="error",  # a warning for each broken request would let clients fill the log
            access_log=False,
            backlog=ACCEPTS_PER_TURN,
            proxy_headers=False,  # an address is the one that is connected, not what a header says
            timeout_graceful_shutdown=30,
        )
        super().__init__(settings)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to accept connections."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)  # asyncio has set it to what it accepts in one turn
        gc.collect()
        gc.freeze()  # torch's 300,000 objects: a full collection that visits them stops all answers for 0.1 s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the connections; the objects of the start may be collected again."""
        await super().shutdown(sockets)
        gc.unfreeze()


def raise_file_limit() -> int:
    """Raises this process's limit of open files as far as it may, at most to MAX_FILES; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def choose_limits(max_queue_size: int, max_files: int) -> ConnectionLimits:
    """Returns the limits of a server: room for four connections to each request of the queue.

    Raises:
        UserError: the limit of open files is too low for the queue.
    """
    default = ConnectionLimits()
    wanted = max(default.max_connections, 4 * max_queue_size + 64)
    available = max_files - RESERVED_FILES
    if available < 2 * max_queue_size + 64:
        raise UserError(
            f"{max_files} open files (ulimit -Hn) are too few for --max-queue-size {max_queue_size}: "
            f"expected at least {2 * max_queue_size + 64 + RESERVED_FILES}"
        )
    count = min(wanted, available)
    return replace(default, max_connections=count, max_per_address=min(count, max(256, 2 * max_queue_size)))
