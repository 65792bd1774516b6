"""Access control before every route: the Host header, other sites' pages, and the API key.

A page of another site, open in the same browser, must not reach a server on loopback. The name in `Host` must therefore
be one of the server's (against DNS rebinding), bodies must be JSON by their content type, and CORS headers are sent to
the origins of `--allow-origin` alone, so that the browser's preflight request of any other page fails. An API key is
compared in constant time.

Whether a request needs the key is decided by the routes themselves, from the ASGI scope: by the same code, on the same
path, that later chooses the handler. Nothing that a client writes elsewhere (the Host header, an absolute request
target) takes part. What matches no public route needs the key, whatever it is.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Protocol

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fledgling.serve.errors import ErrorResponse, build_error


class AccessPolicy(Protocol):
    """Who may reach a server: names in the Host header (None: any), origins of other sites, the key (None: none)."""

    @property
    def api_key(self) -> str | None:
        """The key that a client must send."""

    @property
    def hosts(self) -> tuple[str, ...] | None:
        """The names of this server."""

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins whose pages may use this server."""


class AccessMiddleware:
    """An ASGI application that passes allowed requests to `app` and answers all others with an error.

    Args:
        app: the application.
        service: gives the accepted hosts, the origins of other sites, and the key.
        public: routes that need no key.
    """

    def __init__(self, app: ASGIApp, service: AccessPolicy, public: Sequence[Route]) -> None:
        self.hosts = service.hosts
        self.app: ASGIApp = app if service.api_key is None else KeyMiddleware(app, service.api_key, public)
        if service.origins:  # outside the key's check: a preflight request carries no key
            self.app = CORSMiddleware(
                self.app, service.origins, ("GET", "POST"), ("*",), expose_headers=("Retry-After",), max_age=600
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection."""
        if scope["type"] == "websocket":  # there is no websocket route: rejected before anything is decided by its path
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self.app(scope, receive, send)
        else:
            await (self._error_response(scope) or self.app)(scope, receive, send)

    def _error_response(self, scope: Scope) -> ErrorResponse | None:
        if self.hosts is None:
            return None
        given = Headers(scope=scope).getlist("host")
        host = given[0] if len(given) == 1 else ""
        end = host.index("]") + 1 if host.startswith("[") and "]" in host else (host + ":").index(":")
        name, port = host[:end], host[end:]
        if name.lower() in self.hosts and (not port or (port[0] == ":" and port[1:].isdecimal())):
            return None
        text = f"the host {host[:80]!r} is not a name of this server; start it with --allow-host NAME"
        return ErrorResponse(build_error(text, "invalid_request_error", None, "wrong_host"), 421)


class KeyMiddleware:
    """An ASGI application that passes requests with the key, and those of public routes, to `app`."""

    def __init__(self, app: ASGIApp, key: str, public: Sequence[Route]) -> None:
        self.app, self.key, self.public = app, key, tuple(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one HTTP request."""
        await (self.app if self._is_allowed(scope) else self._make_rejection())(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        if scope["type"] != "http" or any(route.matches(scope)[0] is Match.FULL for route in self.public):
            return True
        headers = Headers(scope=scope)
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        given = (
            credentials.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        )  # Anthropic's header
        return hmac.compare_digest(given.encode(), self.key.encode())

    def _make_rejection(self) -> ErrorResponse:
        text = "an API key is required: Authorization: Bearer KEY"
        body = build_error(text, "invalid_request_error", None, "invalid_api_key")
        return ErrorResponse(body, 401, headers={"WWW-Authenticate": "Bearer"})
