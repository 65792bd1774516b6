"""Access control before every route: the Host header and the API key.

A page of another site, open in the same browser, must not reach a server on loopback. The name in `Host` must therefore
be one of the server's (against DNS rebinding), bodies must be JSON by their content type, and no CORS header is ever
sent, so that a browser's preflight request fails. An API key is compared in constant time.
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
    """An ASGI application that passes allowed requests to `app` and answers all others with an error."""

    def __init__(self, app: ASGIApp, service: Service, public: Sequence[str]) -> None:
        self.app, self.service, self.public = app, service, frozenset(public)  # public: paths that need no key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection."""
        if scope["type"] == "http" and (error := self._error_response(Request(scope))) is not None:
            await error(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _error_response(self, request: Request) -> JSONResponse | None:
        hosts, key = self.service.hosts, self.service.api_key
        host = request.headers.get("host", "")
        name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.split(":")[0]
        if hosts is not None and name.lower() not in hosts:
            text = f"the host {name[:80]!r} is not a name of this server"
            return JSONResponse(build_error(text, "invalid_request_error", None, "wrong_host"), 421)
        if key is None or request.url.path in self.public:
            return None
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(credentials.strip().encode(), key.encode()):
            return None
        text = "an API key is required: Authorization: Bearer KEY"
        body = build_error(text, "invalid_request_error", None, "invalid_api_key")
        return JSONResponse(body, 401, headers={"WWW-Authenticate": "Bearer"})
