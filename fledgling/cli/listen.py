"""Where a server listens and who may reach it: the options that `serve` and `watch` share."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence

from fledgling.config import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def is_loopback(host: str) -> bool:
    """Returns whether only this machine reaches the address."""
    return host in LOOPBACK


def choose_api_key(host: str, api_key: str | None) -> str | None:
    """Returns the key that clients must send: the option, else FLEDGLING_API_KEY, else none.

    Raises:
        UserError: no key for an address that other machines reach, or one that a header cannot hold.
    """
    api_key = api_key or os.environ.get("FLEDGLING_API_KEY") or None
    if not is_loopback(host) and api_key is None:
        raise UserError(
            f"--host {host} is reachable from outside: give --api-key KEY (or FLEDGLING_API_KEY), or use 127.0.0.1"
        )
    if api_key is not None and not re.fullmatch(r"[!-~]{8,}", api_key):
        raise UserError("the API key: expected at least 8 visible ASCII characters")
    return api_key


def check_sites(hosts: Sequence[str], origins: Sequence[str]) -> None:
    """Raises UserError for a value of --allow-host or --allow-origin that no header can have."""
    for name in hosts:
        if not re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\]", name):
            raise UserError(f"--allow-host {name}: expected a host's name without scheme and port")
    for origin in origins:
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/*\s]+", origin):
            raise UserError(f"--allow-origin {origin}: expected SCHEME://HOST[:PORT], such as https://example.org")


def check_port(port: int) -> None:
    """Raises UserError for a number that is no port."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: expected 0 to 65535")


def listen(host: str, port: int, option: str = "--port") -> tuple[socket.socket, str]:
    """Returns a listening socket and its URL. Raises UserError where the address is not available.

    option: of the command, which chooses another port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        raise UserError(f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}; try {option} 0") from None
    url_host = f"[{host}]" if ":" in host else host
    return listener, f"http://{url_host}:{listener.getsockname()[1]}"
