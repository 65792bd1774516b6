"""The lock of a directory that a process writes: a second writer learns who holds it, since when, and what to do.

    RUN/lock        the claim (filelock.SoftFileLease): host, process id and start time, a token, a heartbeat
    RUN/lock.json   the same token with what a person wants to know: since when, and which command

filelock makes and takes over the claim: exclusive creation works on NFS too. The claim of a process of this machine is
taken over when that process has ended, which its id and start time prove. On another machine only the heartbeat shows
that a holder lives: a process there waits until the claim changes, or takes it over when it has not changed for
LEASE_SECONDS of its own clock, so that the clocks of two machines are never compared. A claim that was copied with its
directory belongs to the original, and is removed.

Only the main rank of a run takes the lock. Readers take none.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import SoftFileLease, SoftFileLock, Timeout

from fledgling.config import UserError
from fledgling.record.durable import make_directory
from fledgling.record.jsonl import make_write_error, write_json

LOCK, HOLDER = "lock", "lock.json"
LEASE_SECONDS = 120.0  # a holder on another machine that is silent for so long has lost its lock
HEARTBEAT_SECONDS = 10.0
POLL_SECONDS = 0.5
HOLDER_SECONDS = 1.0  # a process that has just taken the claim writes lock.json within this time


@dataclass(frozen=True)
class RunLock:
    """A lock that this process holds."""

    directory: Path
    lease: SoftFileLease

    @property
    def is_held(self) -> bool:
        """Whether no other process has taken it over."""
        return self.lease.compromise is None

    def require_held(self) -> None:
        """Raises UserError if another process has taken the lock over, as it may after LEASE_SECONDS of silence."""
        if self.lease.compromise is not None:
            raise UserError(
                f"{self.directory} is no longer locked by this process ({self.lease.compromise.reason}): it was silent "
                f"for {LEASE_SECONDS:.0f} s, or {LOCK} was deleted; nothing more is written; start it again to resume"
            )


@contextmanager
def hold_lock(
    directory: Path | str,
    purpose: str,
    log: Callable[[str], None] = lambda text: None,
    remedy: str = "choose another directory with --set run.out=DIR",
) -> Iterator[RunLock]:
    """Holds the lock of a directory, which is made if it does not exist, during the block.

    Args:
        purpose: what is rejected while another process holds it: "pretrain".
        log: receives a line before this process waits for a sign of a holder on another machine.
        remedy: what else a user can do than wait for the other process.

    Raises:
        UserError: another process holds it, or the directory cannot be written.
    """
    directory = Path(directory)
    lease = SoftFileLease(
        directory / LOCK,
        lease_duration=LEASE_SECONDS,
        heartbeat_interval=HEARTBEAT_SECONDS,
        timeout=0,
        thread_local=False,
    )
    try:
        make_directory(directory)
        _acquire(lease, directory, purpose, log, remedy)
    except OSError as error:
        raise make_write_error(directory / LOCK, error) from None
    token = lease.token
    try:
        write_json(directory / HOLDER, _describe_own(lease, directory))
        yield RunLock(directory, lease)
    finally:
        if _read_json(directory / HOLDER).get("token") == token:  # not that of a process that took over
            with suppress(OSError):
                (directory / HOLDER).unlink(missing_ok=True)
        lease.release()


def read_living_holder(directory: Path | str) -> dict[str, Any] | None:
    """Returns what is known of the process that holds the lock of a directory; None where none lives.

    Takes no lock and waits for nothing. The age of its claim shows whether a process on another machine lives, so
    the clocks of the two machines must agree to LEASE_SECONDS.
    """
    directory = Path(directory)
    state, holder = _read_claim_state(directory), _read_json(directory / HOLDER)
    if state is None or not _is_claim_of(holder, directory, state[0]):
        return None
    if not _is_of_this_machine(holder):
        return holder if time.time() - state[1] / 1e9 < LEASE_SECONDS else None
    try:
        os.kill(int(holder.get("pid", 0)) or -1, 0)
    except PermissionError:
        return holder
    except (OSError, ValueError, TypeError):
        return None
    return holder


def _acquire(lease: SoftFileLease, directory: Path, purpose: str, log: Callable[[str], None], remedy: str) -> None:
    """Takes the claim. Raises UserError once it is certain that a living process holds it."""
    _remove_copied_claim(directory)
    first, has_waited = _read_claim_state(directory), False
    while True:
        try:
            lease.acquire(timeout=0)
            return
        except Timeout:
            holder = _read_holder(directory, lease)
        if holder is None:  # released since
            continue
        now = _read_claim_state(directory)
        first = first or now
        if _is_of_this_machine(holder) or (now is not None and now != first):
            raise UserError(
                f"{directory} is being written by {_describe_holder(holder)}, so {purpose} cannot write there: "
                f"wait for that process, stop it, or {remedy}"
            )
        if not has_waited:
            log(
                f"{directory} is locked by {_describe_holder(holder)}; waiting up to {LEASE_SECONDS:.0f} s for a sign "
                "of that process, then taking over"
            )
        has_waited = True
        time.sleep(POLL_SECONDS)


def _describe_holder(holder: dict[str, Any]) -> str:
    """Returns a holder as text: process 7 on node3 since 2026-11-27 11:08:02 (fledgling train sft runs/a)."""
    text = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
    if "since" in holder:
        text += f" since {holder['since']}"
    return text + (f" ({holder['command']})" if holder.get("command") else "")


def _describe_own(lease: SoftFileLease, directory: Path) -> dict[str, Any]:
    return {
        "token": lease.token,
        "inode": (directory / LOCK).stat().st_ino,
        "directory_inode": directory.stat().st_ino,
        "host": socket.gethostname(),
        "machine": _identify_machine(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join(["fledgling", *sys.argv[1:]]) if sys.argv else "",
    }


def _identify_machine() -> str:
    """Returns what two processes share whose ids can be compared: boot and namespace of process ids; "" if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_of_this_machine(holder: dict[str, Any]) -> bool:
    """Returns whether filelock could see that this holder lives, so that no heartbeat is needed to know it."""
    return holder.get("host") == socket.gethostname() and holder.get("machine") in (None, _identify_machine())


def _read_holder(directory: Path, lease: SoftFileLease) -> dict[str, Any] | None:
    """Returns what is known of the process that holds the claim; None if there is none, {} if it cannot be read.

    Waits up to a second for a holder that has just claimed and not described itself yet.
    """
    deadline = time.monotonic() + HOLDER_SECONDS
    while True:
        owner = lease.owner
        if owner is None:
            if not (directory / LOCK).exists():
                return None
        else:
            described = _read_json(directory / HOLDER)
            if described.get("token") == owner.token:
                return described
        if time.monotonic() > deadline:
            if owner is None:
                return {}
            host, _, namespace = owner.hostname.partition("?")
            return {"pid": owner.pid, "host": host} | ({"machine": "unknown"} if namespace else {})
        time.sleep(0.02)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_claim_state(directory: Path) -> tuple[int, int] | None:
    """Returns what every heartbeat and every new claim changes; the file is opened so that NFS asks its server."""
    try:
        with open(directory / LOCK, "rb") as file:
            status = os.fstat(file.fileno())
        return status.st_ino, status.st_mtime_ns
    except OSError:
        return None


def _remove_copied_claim(directory: Path) -> None:
    """Removes a claim that was copied with its directory: lock.json names other inodes under the same token.

    A lock of its own keeps two processes from doing so at once, since the second would remove the first one's claim.
    """
    if not _is_copied_claim(directory):
        return
    with SoftFileLock(directory / f"{LOCK}.copied", timeout=HEARTBEAT_SECONDS):
        if _is_copied_claim(directory):
            (directory / LOCK).unlink(missing_ok=True)


def _is_copied_claim(directory: Path) -> bool:
    holder, owner = _read_json(directory / HOLDER), SoftFileLease(directory / LOCK, lease_duration=LEASE_SECONDS).owner
    state = _read_claim_state(directory)
    is_same_claim = owner is not None and owner.token == holder.get("token")
    return is_same_claim and state is not None and not _is_claim_of(holder, directory, state[0])


def _is_claim_of(holder: dict[str, Any], directory: Path, inode: int) -> bool:
    """Returns whether lock.json describes the claim with this inode in this directory.

    A copied claim can be given the inode of the original once that is released. Its directory has another inode than
    the original's as long as that exists.
    """
    try:
        own = directory.stat().st_ino
    except OSError:  # it has been removed since
        return False
    return holder.get("inode") == inode and holder.get("directory_inode", own) == own
