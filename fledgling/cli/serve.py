"""`fledgling serve`: a checkpoint behind OpenAI's HTTP API, and a page to talk to it."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

from fledgling.cli.options import Device
from fledgling.config import UserError


def serve(
    checkpoint: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    model_name: str | None = None,
    max_batch_size: int = 32,
    max_queue_size: int = 64,
    prefill_chunk: int | None = None,
    prefix_cache_tokens: int | None = None,
    lookahead_tokens: int = 0,
    device: Device = "auto",
) -> int:
    """Serve a checkpoint: http://127.0.0.1:8000 is a page to talk to it, /v1 speaks OpenAI's API.

    Parameters
    ----------
    checkpoint
        A checkpoint, a stage or a run directory; of a run, what its last finished stage left.
    host
        The address to listen on. Any but loopback needs a key.
    port
        0 takes a free one and prints it.
    api_key
        What clients must send as a bearer key; default FLEDGLING_KEY.
    model_name
        The model's name in the API; default the run's.
    max_batch_size
        Answers decoded at once, in one batch.
    max_queue_size
        Requests waiting or under way before new ones are turned away with 429.
    prefill_chunk
        Tokens of prompts read between two steps: nobody who speaks waits longer; default 256, on a GPU 2,048.
    prefix_cache_tokens
        Tokens kept of earlier prompts and answers, so that they are not read again; default rows times the context.
    lookahead_tokens
        Tokens guessed ahead from what was said before; the answers stay the same. 0: none.
    """
    api_key = api_key or os.environ.get("FLEDGLING_KEY") or None
    local = host in ("127.0.0.1", "localhost", "::1")
    if not local and api_key is None:
        raise UserError(f"--host {host} is reachable from outside: give --key KEY (or FLEDGLING_KEY), or use 127.0.0.1")
    if api_key is not None and not re.fullmatch(r"[!-~]{8,}", api_key):
        raise UserError("the key: expected at least 8 visible ASCII characters")
    if not 0 <= port < 65536 or max_batch_size < 1 or max_queue_size < 1:
        raise UserError(
            f"--port {port} --rows {max_batch_size} --queue {max_queue_size}: expected a port up to 65535 and counts from 1"
        )
    for option, value, least in (
        ("prefill-chunk", prefill_chunk, 1),
        ("prefix-cache-tokens", prefix_cache_tokens, 0),
        ("lookahead-tokens", lookahead_tokens, 0),
    ):
        if value is not None and value < least:
            raise UserError(f"--{option} {value}: expected {least} or more")
    import torch
    import uvicorn

    from fledgling.infer.engine import Engine
    from fledgling.infer.weights import load_model
    from fledgling.runtime.device import choose_dtype
    from fledgling.runtime.world import choose_device
    from fledgling.serve.app import make_app
    from fledgling.serve.service import LOOPBACK, Service
    from fledgling.serve.worker import CPU_PREFILL_CHUNK, GPU_PREFILL_CHUNK, Worker

    place = torch.device(choose_device(device))
    model, tokenizer, state = load_model(checkpoint, place)
    missing = [token for token in ("<|user_start|>", "<|assistant_end|>") if token not in tokenizer.special_tokens]
    if missing:
        raise UserError(f"the tokenizer of {checkpoint} has no {missing[0]}: it was not made for conversation")
    engine = Engine(model, tokenizer, dtype=choose_dtype(place))
    service = Service(
        worker=Worker(
            engine,
            max_batch_size,
            max_queue_size,
            prefill_chunk or (CPU_PREFILL_CHUNK if place.type == "cpu" else GPU_PREFILL_CHUNK),
            prefix_cache_tokens,
            lookahead_tokens,
        ),
        tokenizer=tokenizer,
        model_name=model_name or _name(checkpoint, state),
        created=int(time.time()),
        api_key=api_key,
        hosts=LOOPBACK if local else None,
    )
    listener = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{listener.getsockname()[1]}", flush=True)
    print(f"serving {service.model_name}, {max_batch_size} answers at once; Ctrl-C ends it", file=sys.stderr)
    settings = uvicorn.Config(
        make_app(service),
        log_level="warning",
        timeout_keep_alive=30,
        limit_concurrency=4 * max_queue_size + 64,
        lifespan="off",
    )
    uvicorn.Server(settings).run(sockets=[listener])
    service.worker.close()
    return 0


def _name(checkpoint: Path, state: dict) -> str:
    """The run's name in the recipe it was trained by, else the directory's."""
    found = re.search(r'^name = "([^"]+)"', str(state.get("recipe", "")), re.MULTILINE)
    return found[1] if found else Path(checkpoint).resolve().name


def _listen(host: str, port: int):
    """A listening socket; raises UserError for an address that cannot be had."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(256)
    except OSError as problem:
        listener.close()
        raise UserError(f"cannot listen on {host}:{port}: {os.strerror(problem.errno or 0)}; try --port 0") from None
    return listener
