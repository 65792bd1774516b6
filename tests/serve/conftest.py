"""A server on loopback, on a thread, with a tiny model; and OpenAI's client."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from fledgling.config.model import ModelConfig
from fledgling.infer.engine import Engine
from fledgling.model.transformer import Transformer
from fledgling.serve import service
from fledgling.serve.app import make_app
from fledgling.serve.connections import ConnectionLimits
from fledgling.serve.server import Server
from fledgling.serve.service import Service
from fledgling.serve.worker import Worker
from fledgling.text.tokenizer import Tokenizer
from tests.infer.conftest import adder, chain, patient_grammars  # noqa: F401 - fixtures
from tests.waits import WAIT_SECONDS

CONTEXT = 96
ROOMY_CONTEXT = 800


@pytest.fixture(autouse=True)
def seeds_in_turn(monkeypatch):
    """Requests without a seed have 1, 2, ...: what a random model answers is the same in every run of a test."""
    numbers = itertools.count(1)
    monkeypatch.setattr(service, "draw_seed", lambda: next(numbers))


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the quick brown fox jumps over the lazy dog again and again " * 9], vocab_size=330)


@pytest.fixture(scope="session")
def random_engine(tokenizer: Tokenizer) -> Engine:
    """An engine whose model has random weights: it generates any token, up to the limit."""
    model = Transformer(ModelConfig(tokenizer.vocab_size, 2, 32, 2, 2, CONTEXT, preset="nanochat-2025"))
    model.initialize(0)
    torch.manual_seed(5)
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * 0.3
    return Engine(model, tokenizer)


@pytest.fixture(scope="session")
def roomy_engine(tokenizer: Tokenizer) -> Engine:
    """An engine with random weights and a context that holds descriptions of tools and a few calls."""
    model = Transformer(ModelConfig(tokenizer.vocab_size, 1, 32, 2, 2, ROOMY_CONTEXT, preset="nanochat-2025"))
    model.initialize(0)
    torch.manual_seed(5)
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * 0.3
    return Engine(model, tokenizer)


@contextlib.contextmanager
def serving(
    engine: Engine,
    max_batch_size: int = 8,
    max_queue_size: int = 16,
    connections: ConnectionLimits | None = None,
    others: Sequence[Service] = (),
    mcp: object | None = None,
    **limits,
) -> Iterator[tuple[str, Worker]]:
    """Serves an engine; yields the address and the worker."""
    worker = Worker(engine, max_batch_size, max_queue_size)
    service = Service(worker, engine.tokenizer, "tiny", 1, **limits)
    listener = socket.create_server(("127.0.0.1", 0))
    uvicorn_server = Server(make_app(service, others, mcp), connections or ConnectionLimits())
    thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not uvicorn_server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", worker
    finally:
        uvicorn_server.should_exit = True
        thread.join(10)
        worker.close()
        listener.close()


@pytest.fixture(scope="session")
def server(random_engine: Engine) -> Iterator[tuple[str, Worker]]:
    with serving(random_engine) as address_and_worker:
        yield address_and_worker


@pytest.fixture(scope="module")  # its event loop is the thread's: other modules need their own
def browser():
    """Chromium without a window; its tests are skipped where it or playwright is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        chromium.on("context", lambda context: context.set_default_timeout(1000 * WAIT_SECONDS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def roomy_server(roomy_engine: Engine) -> Iterator[tuple[str, Worker]]:
    with serving(roomy_engine) as address_and_worker:
        yield address_and_worker


@pytest.fixture(scope="session")
def client() -> Callable:
    openai = pytest.importorskip("openai")

    def make(address: str, key: str = "none"):
        return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=WAIT_SECONDS)

    return make
