"""The world: one rank takes the same path as many, and nonsense from the environment is told in one line."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.multiprocessing as mp

from fledgling.config import UserError
from fledgling.runtime import world
from fledgling.runtime.world import World, choose_device, rendezvous


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_one_rank():
    world = World.start("cpu")
    assert (world.rank, world.size, world.is_main, world.device) == (0, 1, True, torch.device("cpu"))
    assert world.all_reduce(3) == 3.0 and isinstance(world.all_reduce(3), float)
    assert world.all_gather_object({"a": 1}) == [{"a": 1}]
    world.barrier()
    world.close()


def test_sum_returns_a_new_tensor():
    given = torch.ones(2)
    total = World.start("cpu").all_reduce(given)
    total += 1
    assert given.tolist() == [1.0, 1.0]


def _rank(rank, size, port, results):
    import os

    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    world = World.start("cpu")
    given = torch.tensor([1.0, rank])
    results[rank] = (
        world.is_main,
        world.all_reduce(rank + 1),
        world.all_reduce(2**40 + rank),
        world.all_reduce(given).tolist(),
        given.tolist(),
        world.all_gather_object(f"rank {rank}"),
    )
    world.barrier()
    world.close()


def test_two_ranks_agree():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = mp.get_context("spawn").Manager().dict()
    mp.spawn(_rank, args=(2, port, results), nprocs=2)
    for rank in range(2):
        both = ["rank 0", "rank 1"]
        assert results[rank] == (rank == 0, 3.0, 2.0**41 + 1, [2.0, 1.0], [1.0, float(rank)], both)


def _joined(shared, monkeypatch, size=3):
    """The store that each of `size` ranks gets out of a shared one."""
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *_, **__: iter([(shared, 0, size)]))
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: rendezvous(rank, size), reversed(range(size))))


def test_ranks_that_are_started_again_see_nothing_of_those_before(monkeypatch):
    shared, rounds = torch.distributed.HashStore(), []
    for number in range(3):
        stores = _joined(shared, monkeypatch)
        assert not any(store.check(["address"]) for store in stores)
        stores[0].set("address", str(number))
        assert all(store.get("address") == str(number).encode() for store in stores)
        rounds.append(stores[0])
    assert [store.get("address") for store in rounds] == [b"0", b"1", b"2"]


def test_who_does_not_come_is_named(monkeypatch):
    shared = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *_, **__: iter([(shared, 0, 3)]))
    monkeypatch.setattr(world, "RENDEZVOUS_TIMEOUT", timedelta(seconds=0.2))
    shared.set("join/1", "of a round before")
    with pytest.raises(TimeoutError, match="ranks 1, 2 are missing"):
        rendezvous(0, 3)


@pytest.mark.parametrize(
    ("variables", "word"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2"),
        ({"RANK": "x"}, "whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
    ],
)
def test_variables_that_make_no_sense(monkeypatch, variables, word):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=word):
        World.start("cpu")


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device() == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device() == "cuda" and choose_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="cuda"):
        choose_device("cuda")
    with pytest.raises(UserError, match="tpu"):
        choose_device("tpu")
