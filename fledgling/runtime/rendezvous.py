"""How ranks find each other: a store that only the ranks of one start share."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from datetime import timedelta
from typing import Any

COLLECTIVE_TIMEOUT = timedelta(hours=2)  # long, because the main rank may prepare data or evaluate while others wait
RENDEZVOUS_TIMEOUT = timedelta(minutes=15)  # until all ranks have started


def rendezvous(rank: int, size: int) -> Any:
    """Waits for all ranks that were started together and returns a store that only they share.

    A launcher that restarts ranks keeps its store, with the addresses of the dead ranks in it, and launchers of
    several machines may count their restarts differently. Therefore every process writes a random token. Rank 0 writes
    the list of tokens until all ranks have signed the same list; the hash of the list is the prefix of the store.
    Raises TimeoutError that names the missing ranks.
    """
    import torch.distributed as dist

    shared, _, _ = next(dist.rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
    own_token, deadline = secrets.token_hex(8), time.monotonic() + RENDEZVOUS_TIMEOUT.total_seconds()
    shared.set(f"join/{rank}", own_token)

    def read(key: str) -> str:
        return shared.get(key).decode() if shared.check([key]) else ""

    missing: list[int] = []
    while time.monotonic() < deadline:
        if rank == 0:
            tokens = [read(f"join/{other}") for other in range(size)]
            present = json.dumps(tokens)
            shared.set("present", present)
            missing = [other for other in range(1, size) if not tokens[other] or read(f"signed/{other}") != present]
            if not missing:
                shared.set("complete", present)
        else:
            present = read("present")
            if present and own_token in json.loads(present):
                shared.set(f"signed/{rank}", present)
        if own_token in (complete := read("complete")):
            return dist.PrefixStore(hashlib.sha256(complete.encode()).hexdigest()[:16], shared)
        time.sleep(0.02 if time.monotonic() < deadline - RENDEZVOUS_TIMEOUT.total_seconds() + 5 else 0.5)
    subject = f"ranks {', '.join(map(str, missing))} are" if rank == 0 else "not all ranks are"
    raise TimeoutError(f"{subject} missing after {RENDEZVOUS_TIMEOUT}: read their output, and start the run again")


def open_store(name: str, timeout: timedelta) -> Any:
    """Opens a separate connection to the store that all ranks share, for the keys under `name`."""
    import torch.distributed as dist

    shared, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    shared.set_timeout(timeout)
    return dist.PrefixStore(name, shared)
