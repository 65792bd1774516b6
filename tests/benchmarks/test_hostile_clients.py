"""The table of the server's hostile clients, and that every scenario has a client."""

from __future__ import annotations

import socket

import pytest

from benchmarks import hostile_clients
from benchmarks.hostile_clients import BIASES, OPENINGS, SCENARIOS, format_hostile_clients, run_hostile


def test_the_table_has_a_line_for_each_scenario():
    row = {"without": 0.1, "with": 0.12, "ratio": 1.2, "health_p50_ms": 1.0, "health_p99_ms": 20.0, "failed": 0}
    rows = {name: dict(row) for name in SCENARIOS}
    rows[BIASES]["ratio_to_16_answers"] = 1.05
    text = format_hostile_clients({"cores": 2, "threads": 1, "connections": 1000, "load": 0.1, "scenarios": rows})
    assert all(name in text for name in SCENARIOS) and "1.20" in text and text.endswith("without: 1.05")


class _Begun(Exception):
    """Ends a hostile client once it has begun."""


class _Pipe:
    def send(self, message: str) -> None:
        raise _Begun


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_begins(name, monkeypatch):
    """Against a socket that never answers; an idle scenario opens as many connections as requested."""
    monkeypatch.setattr(hostile_clients, "_is_healthy", lambda port: True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(_Begun):
            run_hostile(_Pipe(), name, listener.getsockname()[1], 20)
        listener.settimeout(10)
        for _ in range(20 if name in OPENINGS else 0):
            listener.accept()[0].close()
