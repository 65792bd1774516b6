"""Connections of the server: time limits for each phase of a request, and a cap that leaves room for new ones.

uvicorn has one limit of time, between two requests, and every byte resets it. `LimitedProtocol` adds what it lacks, on
real timers: a request's headers, its body and its answer each have a deadline that no byte prolongs, and a client that
does not read its answer has a budget of seconds. `ConnectionTable` counts connections, in all and of each address. At
the cap a new one takes the place of the connection that has waited longest without a complete request, of the address
with the most connections: thousands of idle or half-sent requests cannot keep `/health` out. Requests that are being
answered are never closed for a new one; their number is bounded by the worker's queue.

A client gets 408 if it was too slow, 429 if its address is at its cap, 503 if the server is; with Retry-After, in the
form of the API whose path it asked for.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import socket
import struct
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from fledgling.serve.errors import build_error, convert_error

MAX_HEADER_BYTES = 16_384  # of one request; also the bytes of a body that h11 gets to parse at once
HEADER_PART_BYTES = 512  # of headers that it gets to parse at once
MAX_EARLY_BYTES = 65_536  # of requests that arrive before the answer to the one before them
REQUEST_LINE = re.compile(rb"[A-Z]{1,16} (/[^? ]{0,256})[? ]")
MAX_CHUNKS = 4096  # of a chunked body: one-byte chunks cost a hundred times their length
READ_RATE = 16_384  # bytes a second: a client that reads its answer at this rate loses nothing of its budget
RETRY_AFTER = 2  # seconds, in 408, 429 and 503 of this module
MAX_LINGERING = 64  # closed connections that are read until their client has seen the error
LINGER_SECONDS = 1.0


@dataclass(frozen=True)
class ConnectionLimits:
    """Seconds that each phase of a connection may take, and how many connections there may be."""

    header_seconds: float = 10.0  # until a request's headers are complete
    body_seconds: float = 35.0  # from there until its body is; the application answers 408 after 30
    idle_seconds: float = 30.0  # between two requests
    answer_seconds: float = 1800.0  # from a complete request until the end of its answer
    stall_seconds: float = 20.0  # that a client may leave its answer unread, in all; see READ_RATE
    max_connections: int = 1024
    max_per_address: int = 256  # of one IPv4 address, or one IPv6 network of 64 bits


class Phase(IntEnum):
    """What a connection waits for; up to BODY, for its client."""

    IDLE = 0
    HEADERS = 1
    BODY = 2
    ANSWER = 3
    CLOSING = 4


class ConnectionTable:
    """All open connections of a server, by address; those that wait for their client are in order of arrival."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.count = 0
        self.lingering = 0
        self._open: defaultdict[str, set[LimitedProtocol]] = defaultdict(set)
        self._waiting: defaultdict[str, dict[LimitedProtocol, None]] = defaultdict(dict)  # longest wait first

    def add(self, connection: LimitedProtocol) -> int:
        """Adds a connection; returns 0, or the status (429 or 503) with which it must be rejected.

        Where the table is full, the connection that has waited longest is closed for it. The longest wait alone
        decides: a new one, whose headers are on their way, must not give way to older ones.
        """
        status = 0
        if len(self._open[connection.address]) >= self.limits.max_per_address:
            status = 0 if self._close_longest_waiting([connection.address]) else 429
        elif self.count >= self.limits.max_connections:
            status = 0 if self._close_longest_waiting(self._waiting) else 503
        if not status:
            self._open[connection.address].add(connection)
            self.count += 1
            self.update(connection)
        return status

    def update(self, connection: LimitedProtocol) -> None:
        """Notes that a connection has entered another phase."""
        waiting = self._waiting[connection.address]
        waiting.pop(connection, None)
        if connection.phase <= Phase.BODY and connection in self._open[connection.address]:
            waiting[connection] = None
        self._forget_empty(connection.address)

    def discard(self, connection: LimitedProtocol) -> None:
        """Removes a connection, if it is here."""
        if connection in self._open[connection.address]:
            self._open[connection.address].remove(connection)
            self.count -= 1
        self._waiting[connection.address].pop(connection, None)
        self._forget_empty(connection.address)

    def _close_longest_waiting(self, addresses: Iterable[str]) -> bool:
        """Closes the longest waiting connection of the address with most connections; returns False if none waits."""
        crowded = max((a for a in addresses if self._waiting.get(a)), key=lambda a: len(self._open[a]), default=None)
        if crowded is None:
            return False
        next(iter(self._waiting[crowded])).give_way()
        return True

    def _forget_empty(self, address: str) -> None:
        for groups in (self._open, self._waiting):
            if not groups[address]:  # type: ignore[index]
                del groups[address]  # type: ignore[attr-defined]


def group_address(host: str) -> str:
    """Returns what counts as one address: an IPv4 address, or the first 64 bits of an IPv6 address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return host


class _BoundedConnection(h11.Connection):
    """h11's parser, with a limit on the chunks of a body."""

    num_chunks = 0

    def next_event(self) -> Any:
        """Returns the next event. Raises RemoteProtocolError with status 413 after MAX_CHUNKS chunks."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.num_chunks = 0
        elif isinstance(event, h11.Data) and event.chunk_start:
            self.num_chunks += 1
            if self.num_chunks > MAX_CHUNKS:
                raise h11.RemoteProtocolError(f"more than {MAX_CHUNKS:,} chunks", error_status_hint=413)
        return event


class LimitedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 on h11, with a deadline for every phase of a connection.

    Args:
        table: counts the connections.
        settings: what uvicorn passes.
    """

    def __init__(self, *, table: ConnectionTable, **settings: Any) -> None:
        super().__init__(**settings)
        self.table, self.limits = table, table.limits
        self.conn = _BoundedConnection(h11.SERVER, MAX_HEADER_BYTES)
        self.address = ""
        self.phase = Phase.HEADERS
        self._phase_timer: asyncio.TimerHandle | None = None
        self._received_any = False  # of the current request
        self._early_bytes = 0
        self._lingers = False
        self._stall_left = self.limits.stall_seconds
        self._stall_start, self._stall_bytes = 0.0, 0
        self._stall_timer: asyncio.TimerHandle | None = None

    # ---- what uvicorn and asyncio call -----------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Counts the connection and waits for headers; rejects it where the table is full."""
        super().connection_made(transport)
        self.address = group_address(self.client[0] if self.client else "")
        status = self.table.add(self)
        self._enter(Phase.HEADERS)
        if status:
            who = "this address has" if status == 429 else "the server has"
            self._end_with_error(status, f"{who} its limit of open connections", "too_many_connections")

    def data_received(self, data: bytes) -> None:
        """Parses what arrived, in parts, so that headers of any length are noticed before they are parsed."""
        start = 0
        while start < len(data):
            if self.phase is Phase.CLOSING or self.transport.is_closing():
                return
            self._received_any = True
            if self.phase is Phase.IDLE:
                self._enter(Phase.HEADERS)
            # h11 limits headers that are incomplete: what completes them may exceed the limit by one part.
            size = HEADER_PART_BYTES if self.phase is Phase.HEADERS else MAX_HEADER_BYTES
            part, start = data[start : start + size], start + size
            super().data_received(part)
            self._update_phase()
            if self.phase is Phase.ANSWER:
                self._limit_early_bytes(len(part))

    def on_response_complete(self) -> None:
        """Waits for the next request, or for the rest of this one's body."""
        if self.phase is Phase.ANSWER and self._phase_timer:  # a pipelined request has a deadline of its own
            self._phase_timer.cancel()
            self._phase_timer = None
        super().on_response_complete()
        self._unset_keepalive_if_required()  # the phases have timers of their own
        self._received_any = bool(self.conn.trailing_data[0])
        self._update_phase()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        super().connection_lost(exc)
        self.table.discard(self)
        self.table.lingering -= self._lingers
        self._lingers = False
        self.phase = Phase.CLOSING
        for timer in (self._phase_timer, self._stall_timer):
            if timer:
                timer.cancel()

    def pause_writing(self) -> None:
        """The client reads more slowly than the answer is made: its budget runs."""
        super().pause_writing()
        self._start_stall()

    def resume_writing(self) -> None:
        """The client has read: its budget stops."""
        super().resume_writing()
        if self._stall_timer and self.phase is not Phase.CLOSING:
            self._stall_timer.cancel()
            self._stall_timer = None
            self._settle_stall()

    def send_400_response(self, msg: str) -> None:
        """Answers a request that is not HTTP, or too large to parse, in the form of its route."""
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        self._end_with_error(status, str(error) if status == 413 else msg, "invalid_http_request", retry=False)

    # ---- phases ----------------------------------------------------------------------------------

    def _update_phase(self) -> None:
        """Enters the phase that the states of both sides mean."""
        if self.phase is Phase.CLOSING:
            return
        if self.transport.is_closing():
            self._enter(Phase.CLOSING)
        elif self.conn.their_state is h11.SEND_BODY:
            self._enter(Phase.BODY)
        elif self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE:
            self._enter(Phase.HEADERS if self._received_any else Phase.IDLE)
        else:
            self._enter(Phase.ANSWER)

    def _limit_early_bytes(self, count: int) -> None:
        """Cuts a client off that sends requests faster than they are answered: they would be kept in memory.

        uvicorn pauses reading after a request, but reads again as soon as the application looks for a disconnect.
        """
        self._early_bytes += count
        if self._early_bytes > MAX_EARLY_BYTES:
            self._early_bytes = len(self.conn.trailing_data[0])
            if self._early_bytes > MAX_EARLY_BYTES:
                self._reset()

    def _enter(self, phase: Phase) -> None:
        """Starts the deadline of a phase; of the phase that the connection is in already, none is prolonged."""
        if phase is self.phase and self._phase_timer:
            return
        if self._phase_timer:
            self._phase_timer.cancel()
        self.phase = phase
        self.table.update(self)
        if phase is Phase.CLOSING:
            self._start_stall()  # an answer that is never read must not keep the socket
            return
        limits = self.limits
        seconds = (limits.idle_seconds, limits.header_seconds, limits.body_seconds, limits.answer_seconds)[phase]
        self._phase_timer = self.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        """Ends a connection whose phase took too long."""
        if self.phase is Phase.IDLE or (self.phase is Phase.HEADERS and not self._received_any):
            self._close()
        elif self.phase is Phase.ANSWER:
            seconds = self.limits.answer_seconds
            self._end_with_error(503, f"the answer took more than {seconds:g} s", "answer_timeout")
        else:
            part, seconds = (
                ("headers", self.limits.header_seconds)
                if self.phase is Phase.HEADERS
                else ("body", self.limits.body_seconds)
            )
            self._end_with_error(408, f"the request's {part} did not arrive within {seconds:g} s", f"{part}_timeout")

    def give_way(self) -> None:
        """Closes this connection for a new one."""
        if self.phase is Phase.IDLE or not self._received_any:
            self._close()
        else:
            self._end_with_error(503, "the server has its limit of open connections", "too_many_connections")

    def _close(self) -> None:
        self.table.discard(self)
        self.transport.close()
        self._enter(Phase.CLOSING)

    def _reset(self) -> None:
        """Closes at once and drops what was not read; otherwise the kernel keeps megabytes of it for minutes."""
        connected = self.transport.get_extra_info("socket")
        if connected is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _end_with_error(self, status: int, message: str, code: str, retry: bool = True) -> None:
        """Answers with an error, if no answer has begun, and closes; the client gets a moment to read it."""
        if self.phase is Phase.CLOSING or self.transport.is_closing():
            return
        can_answer = self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE)
        if can_answer:
            self.transport.write(self._encode_error(status, message, code, retry))
        if self.cycle and not self.cycle.response_complete:  # the application must not write after this
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.flow.resume_writing()
        if not can_answer or self.table.lingering >= MAX_LINGERING:
            self._close()
            return
        # Closing a socket with unread bytes resets the connection, and the client may lose the answer.
        try:
            self.transport.write_eof()
        except (OSError, NotImplementedError):  # the client has left already, or the transport has no half
            self._close()
            return
        self.table.discard(self)
        self._enter(Phase.CLOSING)
        self._lingers = True
        self.table.lingering += 1
        self.flow.resume_reading()
        self._phase_timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _encode_error(self, status: int, message: str, code: str, retry: bool) -> bytes:
        kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
        error = convert_error(build_error(message, kind, None, code), self._find_path(), status)
        body = json.dumps(error).encode()
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Content-Type: application/json"]
        head += [f"Content-Length: {len(body)}", "Connection: close"]
        head += [f"Retry-After: {RETRY_AFTER}"] if retry else []
        return "\r\n".join([*head, "", ""]).encode() + body

    def _find_path(self) -> str:
        """Returns the path of the current request, "" where it has not arrived (a connection above the caps)."""
        if self.cycle and not self.cycle.response_complete:
            return self.scope["path"]
        head = REQUEST_LINE.match(self.conn.trailing_data[0])
        return head[1].decode("ascii", "replace") if head else ""

    # ---- slow readers ----------------------------------------------------------------------------

    def _start_stall(self) -> None:
        if self._stall_timer is None:
            self._stall_start, self._stall_bytes = self.loop.time(), self.transport.get_write_buffer_size()
            self._stall_timer = self.loop.call_later(self._stall_left, self._check_stall)

    def _settle_stall(self) -> None:
        """Takes the seconds since the last call from the budget, and gives back the time of the bytes read."""
        now, size = self.loop.time(), self.transport.get_write_buffer_size()
        earned = (self._stall_bytes - size) / READ_RATE - (now - self._stall_start)
        self._stall_left = min(self.limits.stall_seconds, self._stall_left + earned)
        self._stall_start, self._stall_bytes = now, size

    def _check_stall(self) -> None:
        """Cuts a client off whose budget is used up."""
        self._settle_stall()
        if self._stall_left > 0.01:
            self._stall_timer = self.loop.call_later(self._stall_left, self._check_stall)
        else:
            self._reset()
