"""`fledgling serve`: a checkpoint behind an OpenAI-compatible HTTP API, and a page for conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fledgling.cli.listen import check_port, check_sites, choose_api_key, is_loopback, listen
from fledgling.cli.mcp import start_mcp_tools
from fledgling.cli.options import ChatCheckpoint, Device, Host, Port, Repeated, RunPython, print_to_stderr
from fledgling.config import UserError

BatchSize = Annotated[int, Parameter(help="Answers decoded at once, in one batch.")]
QueueSize = Annotated[
    int,
    Parameter(
        help="Answers waiting or running before new requests are rejected with status 429; one request has n answers."
    ),
]
PrefillChunk = Annotated[
    int | None,
    Parameter(help="Prompt tokens computed between two decoding steps; default 256, on a GPU 2,048."),
]
PrefixCacheTokens = Annotated[
    int | None,
    Parameter(
        help="Tokens of earlier prompts and answers kept in the cache; default max-batch-size times the context."
    ),
]
NumSpeculativeTokens = Annotated[
    int,
    Parameter(help="Draft tokens of prompt lookup in one step; the answers stay the same. 0: none."),
]


def serve(
    checkpoint: ChatCheckpoint,
    /,
    *,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: str | None = None,
    allow_host: Repeated = (),
    allow_origin: Repeated = (),
    model_name: str | None = None,
    compare: Annotated[tuple[Path, ...], Parameter(negative=(), show_default=False)] = (),
    max_batch_size: BatchSize = 32,
    max_queue_size: QueueSize = 64,
    prefill_chunk: PrefillChunk = None,
    prefix_cache_tokens: PrefixCacheTokens = None,
    num_speculative_tokens: NumSpeculativeTokens = 0,
    python: RunPython = False,
    adapter: Repeated = (),
    mcp: Repeated = (),
    allow_tool: Repeated = (),
    device: Device = "auto",
) -> int:
    """Serve a checkpoint: a page at http://127.0.0.1:8000, and an OpenAI-compatible API under /v1.

    Parameters
    ----------
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
    adapter
        NAME=DIR: an adapter in peft's format on these weights, served as the model NAME; may be repeated.
    mcp
        The command of an MCP server, whose tools the page offers to the model; may be repeated.
    allow_tool
        A tool of an MCP server that the page calls without asking; may be repeated.
    """
    check_port(port)
    api_key = choose_api_key(host, api_key)
    check_sites(allow_host, allow_origin)
    _require_at_least(1, max_batch_size=max_batch_size, max_queue_size=max_queue_size, prefill_chunk=prefill_chunk)
    _require_at_least(0, prefix_cache_tokens=prefix_cache_tokens, num_speculative_tokens=num_speculative_tokens)
    from fledgling.infer.adapters import parse_adapters
    from fledgling.infer.tools import select_tool
    from fledgling.serve.app import make_app
    from fledgling.serve.server import Server, choose_limits, raise_file_limit
    from fledgling.serve.services import AccessOptions, WorkerSettings, load_services

    limits = choose_limits(max_queue_size, raise_file_limit())
    settings = WorkerSettings(
        max_batch_size, max_queue_size, prefill_chunk, prefix_cache_tokens, num_speculative_tokens
    )
    access = AccessOptions(api_key, allow_host, allow_origin, is_loopback(host))
    models = ([checkpoint, *compare], parse_adapters(adapter))
    services = load_services(*models, settings, access, model_name, device, select_tool(python), print_to_stderr)
    tools = start_mcp_tools(mcp, allow_tool)
    listener, url = listen(host, port)
    print(url, flush=True)
    names = ", ".join(service.model_name for service in services)
    print_to_stderr(f"serving {names}, batch size {max_batch_size}; Ctrl-C stops the server")
    Server(make_app(services[0], services[1:], tools), limits).run(sockets=[listener])
    if tools:
        tools.close()
    for service in services:
        service.worker.close()
    return 0


def _require_at_least(low: int, **options: int | None) -> None:
    """Raises UserError for an option below `low`; None is its default."""
    for name, value in options.items():
        if value is not None and value < low:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected {low} or more")
