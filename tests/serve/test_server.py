"""Limits of the server: files, connections, and the settings of uvicorn."""

from __future__ import annotations

import asyncio
import gc
import resource
import socket

import pytest

from fledgling.config import UserError
from fledgling.serve.connections import ConnectionLimits, LimitedProtocol
from fledgling.serve.server import BACKLOG, RESERVED_FILES, Server, choose_limits, raise_file_limit


@pytest.mark.parametrize(
    ("soft", "hard", "raised"),
    [(256, 4096, 4096), (1024, 10**6, 65_536), (256, resource.RLIM_INFINITY, 65_536), (4096, 4096, None)],
)
def test_the_soft_limit_of_files_becomes_the_hard_one(monkeypatch, soft, hard, raised):
    chosen = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: chosen.append(limits))
    assert raise_file_limit() == (raised or soft)
    assert chosen == ([(raised, hard)] if raised else [])


def test_a_limit_that_is_high_already_stays():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    raise_file_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= before[0]


@pytest.mark.parametrize(
    ("queue", "files", "total", "per_address"),
    [(64, 65_536, 1024, 256), (1000, 65_536, 4064, 2000), (64, 1024, 896, 256), (64, 320, 192, 192)],
)
def test_connections_have_room_for_the_queue_and_files_for_the_rest(queue, files, total, per_address):
    limits = choose_limits(queue, files)
    assert (limits.max_connections, limits.max_per_address) == (total, per_address)
    assert queue < limits.max_connections <= files - RESERVED_FILES


def test_too_few_files_for_the_queue_are_an_error_before_the_model_is_loaded():
    with pytest.raises(UserError, match=r"256 open files .* expected at least 320"):
        choose_limits(64, 256)


def test_uvicorn_has_no_door_of_its_own():
    """No WebSockets, no addresses from headers, no plain-text 503, and our protocol whatever else is installed."""
    server = Server(lambda scope, receive, send: None, ConnectionLimits())
    settings = server.config
    settings.load()
    assert settings.http_protocol_class.func is LimitedProtocol and settings.ws_protocol_class is None
    assert not settings.proxy_headers and settings.limit_concurrency is None
    assert settings.backlog < BACKLOG


def test_a_full_collection_skips_what_was_there_before_the_first_request():
    """Torch's objects are visited by no collection: that takes 0.1 s, in which no answer continues."""

    gc.unfreeze()

    async def start_and_stop() -> tuple[int, int]:
        server = Server(lambda scope, receive, send: None, ConnectionLimits())
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            await server.startup([listener])
            frozen = gc.get_freeze_count()
            await server.shutdown([listener])
        return frozen, gc.get_freeze_count()

    frozen, after = asyncio.run(start_and_stop())
    assert frozen > 10_000 and after == 0
