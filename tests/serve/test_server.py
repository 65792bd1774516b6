"""Limits of the server: files, connections, and what uvicorn is told."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from fledgling.config import UserError
from fledgling.serve.connections import ConnectionLimits, LimitedProtocol
from fledgling.serve.server import BACKLOG, RESERVED_FILES, Server, choose_limits, raise_file_limit


def test_the_soft_limit_of_files_becomes_the_hard_one():
    code = (
        "import resource; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, min(hard, 4096)));"
        "from fledgling.serve.server import raise_file_limit;"
        "print(raise_file_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    raised, soft = map(int, result.stdout.split())
    assert raised == soft == min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


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
