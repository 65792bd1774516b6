"""The page's files, and the policy under which a browser runs a page of this package."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE = Path(__file__).parent / "page"
PAGE_FILES = (
    "index.html",
    "page.css",
    *(f"{name}.js" for name in ("page", "answer", "api", "conversation", "markdown", "markdown_forms")),
    *(f"{name}.js" for name in ("message", "settings", "sidebar", "store", "tools")),
    "vendor/markdown.bundle.js",
    "vendor/LICENSES.txt",
)
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types dompurify"
)
PAGE_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def make_page_routes() -> list[Route]:
    """Returns the routes of the chat page's files."""
    return [Route(path, make_file_handler(PAGE / name)) for path, name in page_paths().items()]


def page_paths() -> dict[str, str]:
    """Returns the path of each of the chat page's files, and of the page itself."""
    return {"/": "index.html", **{f"/{name}": name for name in PAGE_FILES}}


def make_file_handler(path: Path) -> Callable[[Request], Awaitable[Response]]:
    """Returns the handler that sends one file with the page's policy, or 304 to a browser that has it.

    The file is read once, here: a request costs no access to the disk and no thread, so that clients which request
    files without end and never read them take little from the answers of others (`python -m benchmarks
    hostile-clients`).
    """
    content = path.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    media_type = mimetypes.guess_type(path.name)[0]
    headers = PAGE_HEADERS | {"ETag": etag}

    async def respond(request: Request) -> Response:
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return respond
