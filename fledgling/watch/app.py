"""The routes of the watcher, behind the access checks of `fledgling.serve` (host names and key).

Runs are read when a client asks, at most once in REFRESH_SECONDS for all clients together, on one thread: without a
client nothing is read. A client says which versions it has and receives the stages that have changed since.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fledgling.config import UserError
from fledgling.record.run_requests import ACTIONS, request_action
from fledgling.serve.errors import build_error
from fledgling.serve.middleware import AccessMiddleware
from fledgling.serve.page_files import PAGE as CHAT_PAGE
from fledgling.serve.page_files import make_file_handler
from fledgling.watch.machine import MachineLoad
from fledgling.watch.run_watch import RunWatch

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": PAGE / "index.html",
    **{f"/{name}": PAGE / name for name in ("watch.js", "charts.js", "elements.js", "watch.css")},
    **{f"/{name}": PAGE / name for name in ("vendor/uplot.bundle.js", "vendor/uPlot.min.css", "vendor/LICENSE.txt")},
    "/page.css": CHAT_PAGE / "page.css",
}
REFRESH_SECONDS = 1.0
MAX_BODY_BYTES = 1000


@dataclass(frozen=True)
class WatchAccess:
    """Who may reach the watcher: see `fledgling.serve.middleware.AccessPolicy`."""

    api_key: str | None
    hosts: tuple[str, ...] | None
    origins: tuple[str, ...] = ()  # no page of another site


class WatchedRuns:
    """The runs, the machine, and when they were last read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.runs = [RunWatch(path) for path in paths]
        self.machine = MachineLoad()
        self.instance = secrets.token_hex(4)  # versions of an earlier process mean nothing
        self._load: dict[str, Any] = {}
        self._read_at = float("-inf")

    def describe(self, since: str) -> dict[str, Any]:
        """Returns machine and runs as JSON. since: `cursor` of an earlier result, whose stages are not repeated."""
        if time.monotonic() - self._read_at >= REFRESH_SECONDS:
            self._read_at = time.monotonic()
            self._load = self.machine.read()
            for run in self.runs:
                run.update()
        versions = _parse_cursor(since, self.instance, len(self.runs))
        runs = [run.describe(version) for run, version in zip(self.runs, versions, strict=True)]
        names = choose_names([(str(run["name"]), self.runs[number].path) for number, run in enumerate(runs)])
        runs = [run | {"name": name} for run, name in zip(runs, names, strict=True)]
        cursor = ":".join([self.instance, *(str(run.version) for run in self.runs)])
        return {"cursor": cursor, "time": time.time(), "machine": self._load, "runs": runs}


def choose_names(runs: Sequence[tuple[str, Path]]) -> list[str]:
    """Returns a name for each run, given its title and path: of runs that share a title the directory's, or the path.

    The recipe's name, the usual title, is the same for two seeds or two settings of one recipe.
    """
    names = [title for title, _ in runs]
    for choose in (lambda path: path.absolute().name, str):
        shared = {name for name, count in Counter(names).items() if count > 1}
        names = [choose(path) if name in shared else name for name, (_, path) in zip(names, runs, strict=True)]
    return names


def _parse_cursor(cursor: str, instance: str, count: int) -> list[int]:
    name, *versions = cursor[:4000].split(":")
    if name != instance or len(versions) != count or not all(v.isascii() and v.isdigit() for v in versions):
        return [0] * count
    return [int(version[:15]) for version in versions]


def make_watch_app(watched: WatchedRuns, access: WatchAccess) -> AccessMiddleware:
    """Returns the ASGI application."""
    thread = anyio.CapacityLimiter(1)  # the runs are read by one thread at a time

    async def describe_runs(request: Request) -> Response:
        since = request.query_params.get("since", "")
        body = await run_sync(lambda: json.dumps(watched.describe(since), allow_nan=False), limiter=thread)
        return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})

    async def describe_batch(request: Request) -> Response:
        run = _find_run(watched, request.query_params.get("run", "0"))
        if run is None:
            return _make_error("no such run", 404)
        return JSONResponse({"batch": await run_sync(run.describe_batch, limiter=thread)})

    async def ask(request: Request) -> Response:
        content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if content_type != "application/json":
            return _make_error("expected the content type application/json", 415)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return _make_error(f"the body is larger than {MAX_BODY_BYTES} bytes", 413)
        try:
            wanted = json.loads(body)
            action, run = wanted["action"], _find_run(watched, str(wanted["run"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            return _make_error('expected {"run": NUMBER, "action": NAME}', 400)
        if run is None:
            return _make_error("no such run", 404)
        if action not in ACTIONS:
            return _make_error(f"expected an action of {', '.join(ACTIONS)}", 400)
        await run_sync(run.update, limiter=thread)
        if run.holder is None:
            return _make_error(f"{run.path} is not running", 409)
        try:
            request_action(run.path, action)
        except UserError as error:
            return _make_error(str(error), 500)
        return JSONResponse({"requested": action})

    async def describe_health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "runs": len(watched.runs)})

    public = [
        Route("/health", describe_health),
        *(Route(path, make_file_handler(file)) for path, file in FILES.items()),
    ]
    routes = [
        *public,
        Route("/api/runs", describe_runs),
        Route("/api/batch", describe_batch),
        Route("/api/requests", ask, methods=["POST"]),
    ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False  # its Location would be made from the client's Host header
    return AccessMiddleware(app, access, public)


def _find_run(watched: WatchedRuns, number: str) -> RunWatch | None:
    in_range = number.isascii() and number.isdigit() and len(number) < 6 and int(number) < len(watched.runs)
    return watched.runs[int(number)] if in_range else None


def _make_error(message: str, status: int) -> JSONResponse:
    return JSONResponse(build_error(message, "invalid_request_error"), status)
