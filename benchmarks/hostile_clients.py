"""Measures what hostile clients cost others: the time of another user's answer and of /health, with and without them.

The server, the hostile clients and the measuring client are three processes. All use one address, the worst case: as
behind a proxy that shows only its own. Each scenario is measured in turns, without and with the hostile clients. The
moment in which a client opens all its connections is not measured; those that it opens again afterwards are.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import multiprocessing
import os
import random
import selectors
import socket
import threading
import time
from multiprocessing.connection import Connection
from statistics import median, quantiles
from typing import Any

HOST = "127.0.0.1"
TOKENS = 30  # of the other user's answer
HEALTH_INTERVAL = 0.01  # seconds between two probes
REOPENED = 5  # connections that a hostile client opens again in each round: 100 a second
TOP_UP_INTERVAL = 0.05  # seconds between two rounds of the hostile clients
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
SLOW_HEADERS, SLOW_BODIES, IDLE = "slow headers", "slow bodies", "idle connections"
ANSWERS, BIASES, LOGPROBS = "16 answers", "16 answers with 1,024 biases each", "16 answers with 5 log-probabilities"
LARGE_BODIES, NEVER_READ = "bodies of 1 MB", "answers never read"
LONG_TEXTS, MANY_TEXTS = "vectors of 60 long texts", "vectors of 2,048 texts"
OPENINGS = {
    SLOW_HEADERS: "GET /health HTTP/1.1\r\nX-Slow: ",
    SLOW_BODIES: f"{HEAD}Content-Length: 900000\r\n\r\n ",
    IDLE: "",
}
VECTORS: dict[str, dict[str, Any]] = {  # of one request of /v1/embeddings
    LONG_TEXTS: {"input": [[*range(300, 1300)]] * 60},
    MANY_TEXTS: {"input": ["etaoin shrdlu"] * 2048},
}
SCENARIOS = (SLOW_HEADERS, SLOW_BODIES, IDLE, ANSWERS, BIASES, LOGPROBS, LARGE_BODIES, NEVER_READ, *VECTORS)


def measure_hostile_clients(
    connections: int = 1000, answers: int = 20, rounds: int = 3, threads: int = 1
) -> dict[str, Any]:
    """Measures every scenario.

    Args:
        connections: of each kind of slow or idle client.
        answers: of the other user in each turn.
        rounds: turns without and with hostile clients, of each scenario.
        threads: of the server's matrix products.

    Returns:
        `cores`, `threads`, `load`, and `scenarios`: name -> the other user's median seconds without and with, their
        ratio, /health's p50 and p99 in milliseconds with, and failed requests.
    """
    context = multiprocessing.get_context("spawn")
    own_end, server_end = context.Pipe()
    server = context.Process(target=run_server, args=(server_end, threads), daemon=True)
    server.start()
    port = own_end.recv()
    result: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "connections": connections,
        "load": os.getloadavg()[0],
        "scenarios": {},
    }
    try:
        ask(port)
        for name in SCENARIOS:
            result["scenarios"][name] = _measure_scenario(context, name, port, connections, answers, rounds)
    finally:
        server.terminate()
        server.join()
    baseline = result["scenarios"][ANSWERS]["with"]
    biased = result["scenarios"][BIASES]
    biased["ratio_to_16_answers"] = biased["with"] / baseline
    return result


def format_hostile_clients(result: dict[str, Any]) -> str:
    """Returns a result of `measure_hostile_clients` as text."""
    lines = [
        f"{result['cores']} cores, {result['threads']} threads, {result['connections']} connections, "
        f"load {result['load']:.1f}; another user's answer of {TOKENS} tokens",
        f"{'':36}{'without s':>10}{'with s':>9}{'ratio':>7}{'health p50':>12}{'p99 ms':>8}{'failed':>8}",
    ]
    for name, row in result["scenarios"].items():
        lines.append(
            f"{name:36}{row['without']:10.3f}{row['with']:9.3f}{row['ratio']:7.2f}"
            f"{row['health_p50_ms']:12.1f}{row['health_p99_ms']:8.1f}{row['failed']:8}"
        )
    ratio = result["scenarios"][BIASES]["ratio_to_16_answers"]
    lines.append(f"large biases, relative to the same 16 answers without: {ratio:.2f}")
    return "\n".join(lines)


def run_server(pipe: Connection, threads: int) -> None:
    """Serves a model of 4 layers and 256 channels with random weights; sends the port."""
    import torch

    from fledgling.config.model import ModelConfig
    from fledgling.infer.engine import Engine
    from fledgling.model.transformer import Transformer
    from fledgling.serve.app import make_app
    from fledgling.serve.server import Server, choose_limits, raise_file_limit
    from fledgling.serve.service import Service
    from fledgling.serve.worker import Worker
    from fledgling.text.tokenizer import Tokenizer

    torch.set_num_threads(threads)
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(3000)]
    tokenizer = Tokenizer.train([" ".join(rng.choices(words, k=50_000))], vocab_size=2048)
    model = Transformer(ModelConfig(tokenizer.vocab_size, 4, 256, 4, 4, 1024, preset="nanochat-2025"))
    model.initialize(0)
    worker = Worker(Engine(model, tokenizer))
    listener = socket.create_server((HOST, 0))
    pipe.send(listener.getsockname()[1])
    limits = choose_limits(worker.max_queue_size, raise_file_limit())
    Server(make_app(Service(worker, tokenizer, "tiny", 0)), limits).run(sockets=[listener])


def ask(port: int, **settings: Any) -> float:
    """Sends one completion of TOKENS tokens on a new connection; returns the seconds it took."""
    body = {"prompt": "etaoin", "max_tokens": TOKENS, "seed": 1, "logit_bias": {"0": -100}} | settings
    return _post(port, "/v1/completions", body)


def _post(port: int, path: str, body: dict[str, Any]) -> float:
    """Sends a request on a new connection; returns the seconds until its answer was complete."""
    start = time.perf_counter()
    client = http.client.HTTPConnection(HOST, port, timeout=600)
    client.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = client.getresponse()
    text = answer.read()
    client.close()
    if answer.status != 200:
        raise OSError(f"{answer.status}: {text[:200]!r}")
    return time.perf_counter() - start


def _measure_scenario(context: Any, name: str, port: int, connections: int, answers: int, rounds: int) -> dict:
    """Returns the row of one scenario."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    health: list[float] = []
    failed = 0
    for _ in range(rounds):
        for hostile in (False, True):
            own_end, hostile_end = context.Pipe()
            if hostile:
                process = context.Process(target=run_hostile, args=(hostile_end, name, port, connections), daemon=True)
                process.start()
                own_end.recv()  # it has begun
            stop = threading.Event()
            probe = threading.Thread(target=_probe_health, args=(port, stop, health if hostile else []))
            probe.start()
            for _ in range(answers):
                try:
                    seconds[hostile].append(ask(port))
                except (OSError, http.client.HTTPException):
                    failed += 1
            stop.set()
            probe.join()
            if hostile:
                process.terminate()
                process.join()
                time.sleep(0.5)  # until the server has noticed
    without, with_hostile = median(seconds[False]), median(seconds[True] or [float("nan")])
    cuts = quantiles(health, n=100, method="inclusive")
    return {
        "without": without,
        "with": with_hostile,
        "ratio": with_hostile / without,
        "health_probes": len(health),
        "health_p50_ms": 1e3 * cuts[49],
        "health_p99_ms": 1e3 * cuts[98],
        "failed": failed,
    }


def _probe_health(port: int, stop: threading.Event, times: list[float]) -> None:
    """Appends the seconds of requests of /health, each on a new connection; one that fails counts as 60."""
    while not stop.is_set():
        start = time.perf_counter()
        times.append(time.perf_counter() - start if _is_healthy(port) else 60.0)
        stop.wait(HEALTH_INTERVAL)


def _is_healthy(port: int) -> bool:
    """Requests /health on a new connection; returns whether it is answered."""
    client = http.client.HTTPConnection(HOST, port, timeout=60)
    try:
        client.request("GET", "/health")
        return client.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        client.close()


def run_hostile(pipe: Connection, name: str, port: int, connections: int) -> None:
    """Behaves as scenario `name` says until the process is ended; sends one message when it has begun."""
    if name in OPENINGS:
        _hold_connections(pipe, OPENINGS[name].encode(), port, connections)
    elif name == NEVER_READ:
        _never_read(pipe, port, connections // 10)
    biases = {str(token): 0.01 for token in range(1024)}
    kinds: dict[str, dict[str, Any]] = {
        ANSWERS: {"n": 16, "max_tokens": 200, "prompt": "a"},
        BIASES: {"n": 16, "max_tokens": 200, "prompt": "a", "logit_bias": biases},
        LOGPROBS: {"n": 16, "max_tokens": 200, "prompt": "a", "logprobs": 5},
        LARGE_BODIES: {"prompt": "etaoin " * 130_000},
    }
    pipe.send("begun")
    while True:
        try:
            if name in VECTORS:
                _post(port, "/v1/embeddings", VECTORS[name])
            else:
                ask(port, **kinds[name])
        except OSError:
            time.sleep(0.01)  # rejected, as it must be


def _hold_connections(pipe: Connection, opening: bytes, port: int, count: int) -> None:
    """Keeps `count` connections with a request that never ends; opens up to REOPENED closed ones again each round."""
    selector, begun = selectors.DefaultSelector(), False
    while True:
        for key, _ in selector.select(0):
            try:
                closed = not key.fileobj.recv(65536)  # type: ignore[union-attr]
            except OSError:
                closed = True
            if closed:
                selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
        missing = count - len(selector.get_map())
        for _ in range(min(missing, REOPENED) if begun else count):
            client = socket.create_connection((HOST, port), timeout=60)
            client.sendall(opening)
            selector.register(client, selectors.EVENT_READ)
        for key in random.sample(list(selector.get_map().values()), min(20, len(selector.get_map()))):
            if opening:
                with contextlib.suppress(OSError):
                    key.fileobj.send(b"a")  # type: ignore[union-attr]
        if not begun:
            _is_healthy(port)  # all connections before this one have been accepted
            pipe.send("begun")
            begun = True
        time.sleep(TOP_UP_INTERVAL)


def _never_read(pipe: Connection, port: int, count: int) -> None:
    """Requests files on `count` connections, with a small buffer, and reads nothing."""
    pipe.send("begun")
    while True:
        clients = []
        for _ in range(count):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((HOST, port))
            client.sendall(b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
            clients.append(client)
            time.sleep(TOP_UP_INTERVAL)
        for client in clients:
            client.close()
