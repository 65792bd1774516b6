"""The gate in front of every route: who may address this server, by which name, with which key.

The one idea: a page of another site, open in the same browser, must not reach a server on loopback. The name in `Host`
must be one of ours (against DNS rebinding), bodies must be JSON by their content type, and no CORS header is ever sent,
so a browser asks first and is told no. Where a key is set, it is compared in constant time.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fledgling.serve.responses import build_error
from fledgling.serve.service import Service


class AccessMiddleware:
    """An ASGI application around another: lets pass what may pass, answers the rest itself."""

    def __init__(self, app: ASGIApp, service: Service, public: Sequence[str]) -> None:
        self.app, self.service, self.public = app, service, frozenset(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check and pass on, or refuse."""
        if scope["type"] == "http" and (refused := self._refuse(Request(scope))) is not None:
            await refused(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refuse(self, request: Request) -> JSONResponse | None:
        hosts, key = self.service.hosts, self.service.api_key
        host = request.headers.get("host", "")
        name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.split(":")[0]
        if hosts is not None and name.lower() not in hosts:
            body = build_error(f"this server is not called {name[:80]!r}", "invalid_request_error", None, "wrong_host")
            return JSONResponse(body, 421)
        if key is None or request.url.path in self.public:
            return None
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode()):
            return None
        body = build_error(
            "a key is needed: Authorization: Bearer KEY", "invalid_request_error", None, "invalid_api_key"
        )
        return JSONResponse(body, 401, headers={"WWW-Authenticate": "Bearer"})
