"""`fledgling serve`: a checkpoint behind an OpenAI-compatible HTTP API, and a page for conversations."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

from fledgling.cli.listen import check_port, choose_api_key, is_loopback, listen
from fledgling.cli.mcp import start_mcp_tools
from fledgling.cli.options import Device
from fledgling.config import UserError


def serve(
    checkpoint: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    allow_host: tuple[str, ...] = (),
    allow_origin: tuple[str, ...] = (),
    model_name: str | None = None,
    compare: tuple[Path, ...] = (),
    max_batch_size: int = 32,
    max_queue_size: int = 64,
    prefill_chunk: int | None = None,
    prefix_cache_tokens: int | None = None,
    lookahead_tokens: int = 0,
    python: bool = False,
    adapter: tuple[str, ...] = (),
    mcp: tuple[str, ...] = (),
    allow_tool: tuple[str, ...] = (),
    device: Device = "auto",
) -> int:
    """Serve a checkpoint: a page at http://127.0.0.1:8000, and an OpenAI-compatible API under /v1.

    Parameters
    ----------
    checkpoint
        A checkpoint, stage or run directory; of a run, the checkpoint of its last finished stage.
    host
        The address to listen on. Any address but loopback needs an API key.
    port
        0 takes a free one and prints it.
    api_key
        The key that clients must send as a bearer token; default FLEDGLING_API_KEY.
    allow_host
        A further name of this server in the Host header, such as host.docker.internal or a proxy's; may be repeated.
    allow_origin
        The origin (https://example.org) of a site whose pages may use this server; may be repeated.
    model_name
        The model's name in the API; default the run's.
    compare
        A further checkpoint, which answers under the name of its run and stage; the page shows two side by side.
        May be repeated.
    max_batch_size
        Answers decoded at once, in one batch.
    max_queue_size
        Answers waiting or running before new requests are rejected with status 429; one request has n answers.
    prefill_chunk
        Prompt tokens computed between two decoding steps; default 256, on a GPU 2,048.
    prefix_cache_tokens
        Tokens of earlier prompts and answers kept in the cache; default max-batch-size times the context.
    lookahead_tokens
        Draft tokens of prompt lookup in one step; the answers stay the same. 0: none.
    python
        Run the model's own tool calls that are no calculation as Python, in the sandbox's interpreter.
    adapter
        NAME=DIR: an adapter in peft's format on these weights, served as the model NAME; may be repeated.
    mcp
        The command of an MCP server, whose tools the page offers to the model; may be repeated.
    allow_tool
        A tool of an MCP server that the page calls without asking; may be repeated.
    """
    check_port(port)
    api_key = choose_api_key(host, api_key)
    for name in allow_host:
        if not re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\]", name):
            raise UserError(f"--allow-host {name}: expected a host's name without scheme and port")
    for origin in allow_origin:
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/*\s]+", origin):
            raise UserError(f"--allow-origin {origin}: expected SCHEME://HOST[:PORT], such as https://example.org")
    for option, value, low in (
        ("max-batch-size", max_batch_size, 1),
        ("max-queue-size", max_queue_size, 1),
        ("prefill-chunk", prefill_chunk, 1),
        ("prefix-cache-tokens", prefix_cache_tokens, 0),
        ("lookahead-tokens", lookahead_tokens, 0),
    ):
        if value is not None and value < low:
            raise UserError(f"--{option} {value}: expected {low} or more")
    from dataclasses import replace

    from fledgling.infer.adapters import make_engines, parse_adapters
    from fledgling.infer.session import load_chat_engine
    from fledgling.infer.tools import select_tool
    from fledgling.serve.app import make_app
    from fledgling.serve.examples import list_examples
    from fledgling.serve.server import Server, choose_limits, raise_file_limit
    from fledgling.serve.service import LOOPBACK, Service
    from fledgling.serve.worker import CPU_PREFILL_CHUNK, GPU_PREFILL_CHUNK, Worker

    tool = select_tool(python)
    limits = choose_limits(max_queue_size, raise_file_limit())

    def load(path: Path, name: str | None, taken: list[str]) -> Service:
        engine, state = load_chat_engine(path, device, tool, notify=lambda text: print(text, file=sys.stderr))
        chunk = prefill_chunk or (CPU_PREFILL_CHUNK if engine.device.type == "cpu" else GPU_PREFILL_CHUNK)
        return Service(
            worker=Worker(engine, max_batch_size, max_queue_size, chunk, prefix_cache_tokens, lookahead_tokens),
            tokenizer=engine.tokenizer,
            model_name=name or _free_name(run_name(path, state), str(state.get("stage", "")), taken),
            created=int(time.time()),
            api_key=api_key,
            hosts=(*LOOPBACK, *(name.lower() for name in allow_host)) if is_loopback(host) else None,
            origins=allow_origin,
            examples=list_examples(str(state.get("recipe", ""))),
        )

    services = [load(checkpoint, model_name, [])]
    for name, engine in make_engines(services[0].worker.engine, parse_adapters(adapter)).items():
        worker = services[0].worker
        settings = (max_batch_size, max_queue_size, worker.prefill_chunk, prefix_cache_tokens, lookahead_tokens)
        services.append(replace(services[0], worker=Worker(engine, *settings), model_name=name))
    for path in compare:
        services.append(load(path, None, [service.model_name for service in services]))
    tools = start_mcp_tools(mcp, allow_tool)
    listener, url = listen(host, port)
    print(url, flush=True)
    names = ", ".join(service.model_name for service in services)
    print(f"serving {names}, batch size {max_batch_size}; Ctrl-C stops the server", file=sys.stderr)
    Server(make_app(services[0], services[1:], tools), limits).run(sockets=[listener])
    if tools:
        tools.close()
    for service in services:
        service.worker.close()
    return 0


def run_name(checkpoint: Path, state: dict[str, Any]) -> str:
    """Returns the run's name in the recipe of the checkpoint, otherwise the directory's name."""
    match = re.search(r'^name = "([^"]+)"', str(state.get("recipe", "")), re.MULTILINE)
    return match[1] if match else Path(checkpoint).resolve().name


def _free_name(name: str, stage: str, taken: list[str]) -> str:
    """Returns a model's name that no other has: that of the run, of run and stage, or with a number."""
    names = [name, f"{name}-{stage}"] if stage else [name]
    return next((one for one in names if one not in taken), f"{names[-1]}-{len(taken) + 1}")
