"""GET /mcp/tools and POST /mcp/call: the tools of the MCP servers that this server was started with, for its page.

The page shows each call and asks before it sends it here, unless the user who started the server allowed the tool. The
model's answers never reach a tool by themselves: they are generated as for a client with tools of its own.
"""

from __future__ import annotations

from typing import Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fledgling.infer.mcp_tools import McpTools
from fledgling.serve.request_body import answer_errors, read_body
from fledgling.serve.schemas import IgnoringBody, JsonObject, Name, parse_body

MAX_BODY_BYTES = 100_000
MAX_CALLS = 4  # at once


class CallRequest(IgnoringBody):
    """Body of POST /mcp/call."""

    name: Name
    arguments: JsonObject


def describe_mcp_tools(tools: McpTools | None) -> dict[str, Any]:
    """Returns the tools in OpenAI's form, each with whether it is called without asking."""
    if tools is None:
        return {"tools": []}
    return {"tools": [{**tool, "allowed": tool["function"]["name"] in tools.allowed} for tool in tools.describe()]}


def make_mcp_routes(tools: McpTools | None) -> list[Route]:
    """Returns the routes; without servers the list is empty and every call is an error of its own."""
    limiter = CapacityLimiter(MAX_CALLS)

    async def list_tools(request: Request) -> Response:
        return JSONResponse(describe_mcp_tools(tools))

    async def call_tool(request: Request) -> Response:
        call = parse_body(CallRequest, await read_body(request, MAX_BODY_BYTES))
        if tools is None:
            return JSONResponse({"result": "error: this server was started without --mcp"})
        return JSONResponse({"result": await run_sync(tools.call, call.name, call.arguments, limiter=limiter)})

    return [
        Route("/mcp/tools", list_tools, methods=["GET"]),
        Route("/mcp/call", answer_errors(call_tool), methods=["POST"]),
    ]
