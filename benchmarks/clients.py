"""What real clients do with the server: each does what its documentation shows, against a model of random weights.

The clients are packages of other environments (`--python`, `--node-modules`), so that their dependencies need not fit
this project's. What is not installed is reported as such.

    pip install openai langchain-openai litellm llama-index-llms-openai-like pydantic-ai-slim[openai,anthropic]
    pip install anthropic ollama langchain-ollama langchain-anthropic
    npm install openai ai @ai-sdk/openai-compatible zod
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

CHECKS = Path(__file__).parent
TIMEOUT = 240  # seconds for all checks of one language
CONTEXT = 4096  # a token is about a byte here, and a description of tools has hundreds


def measure_clients(python: str, node_modules: Path | None) -> dict[str, Any]:
    """Returns `rows`: client, version, what it did and the result of every check.

    Args:
        python: interpreter that has the Python clients.
        node_modules: folder whose node_modules has the JavaScript clients; None leaves them out.
    """
    with run_server() as address:
        commands = [[python, str(CHECKS / "client_checks.py"), address]]
        if node_modules and (node := which("node")):
            commands.append([node, str(CHECKS / "client_checks.mjs"), address, str(node_modules.resolve())])
        rows = [row for command in commands for row in run_checks(command)]
    return {"rows": rows}


def run_checks(command: list[str]) -> list[dict[str, str]]:
    """Returns the results that a program of checks prints, one line of JSON each."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"client"')]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        rows.append({"client": Path(command[1]).name, "version": "", "what": "run", "result": last[:200]})
    return rows


@contextmanager
def run_server() -> Iterator[str]:
    """Serves a model of random weights on a thread; yields its address."""
    import torch

    from fledgling.config.model import ModelConfig
    from fledgling.infer.engine import Engine
    from fledgling.model.transformer import Transformer
    from fledgling.serve.app import make_app
    from fledgling.serve.connections import ConnectionLimits
    from fledgling.serve.server import Server
    from fledgling.serve.service import Service
    from fledgling.serve.worker import Worker
    from fledgling.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.train(["the quick brown fox jumps over the lazy dog again and again " * 9], vocab_size=330)
    model = Transformer(ModelConfig(tokenizer.vocab_size, 1, 32, 2, 2, CONTEXT, preset="nanochat-2025"))
    model.initialize(0)
    worker = Worker(Engine(model, tokenizer))
    server = Server(make_app(Service(worker, tokenizer, "tiny", 1)), ConnectionLimits())
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    torch.set_num_threads(1)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        worker.close()
        listener.close()


def format_clients(values: dict[str, Any]) -> str:
    """Returns the table."""
    lines = ["| client | version | what it does | result |", "|---|---|---|---|"]
    for row in values["rows"]:
        result = row["result"].replace("|", "/")
        lines.append(f"| {row['client']} | {row['version']} | {row['what']} | {result} |")
    answered = sum(row["result"] == "answered" for row in values["rows"])
    return "\n".join([*lines, "", f"{answered} of {len(values['rows'])} answered ({sys.platform})"])
