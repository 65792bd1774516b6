"""The rendezvous: restarted ranks share a new store, and missing ranks are named."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch

from fledgling.runtime import rendezvous as rendezvous_module
from fledgling.runtime.rendezvous import rendezvous


def rendezvous_of_ranks(shared, monkeypatch, size=3):
    """Returns the store that each of `size` ranks gets out of a shared one."""
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *_, **__: iter([(shared, 0, size)]))
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: rendezvous(rank, size), reversed(range(size))))


def test_restarted_ranks_see_no_keys_of_the_ranks_before(monkeypatch):
    shared, first_stores = torch.distributed.HashStore(), []
    for number in range(3):
        stores = rendezvous_of_ranks(shared, monkeypatch)
        assert not any(store.check(["address"]) for store in stores)
        stores[0].set("address", str(number))
        assert all(store.get("address") == str(number).encode() for store in stores)
        first_stores.append(stores[0])
    assert [store.get("address") for store in first_stores] == [b"0", b"1", b"2"]


def test_missing_ranks_are_named(monkeypatch):
    shared = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *_, **__: iter([(shared, 0, 3)]))
    monkeypatch.setattr(rendezvous_module, "RENDEZVOUS_TIMEOUT", timedelta(seconds=0.2))
    shared.set("join/1", "of a start before")
    with pytest.raises(TimeoutError, match="ranks 1, 2 are missing"):
        rendezvous(0, 3)
