"""The world: one rank takes the same path as many, and invalid variables are reported in one line."""

import os

import pytest
import torch
import torch.multiprocessing as mp

from fledgling.config import UserError
from fledgling.runtime.world import World, choose_backend, choose_device, count_launched_ranks
from tests.ranks import choose_port


@pytest.fixture(autouse=True)
def single_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_one_rank_is_the_main_one_and_sums_alone():
    world = World.start("cpu")
    assert (world.rank, world.size, world.is_main, world.device) == (0, 1, True, torch.device("cpu"))
    assert world.all_reduce(3) == 3.0 and isinstance(world.all_reduce(3), float)
    assert world.all_gather_object({"a": 1}) == [{"a": 1}]
    world.barrier()
    world.close()


def test_all_reduce_returns_a_new_tensor():
    value = torch.ones(2)
    total = World.start("cpu").all_reduce(value)
    total += 1
    assert value.tolist() == [1.0, 1.0]


def _run_rank(rank, size, port, results):
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    world = World.start("cpu")
    value = torch.tensor([1.0, rank])
    results[rank] = (
        world.is_main,
        world.all_reduce(rank + 1),
        world.all_reduce(2**40 + rank),
        world.all_reduce(value).tolist(),
        value.tolist(),
        world.all_gather_object(f"rank {rank}"),
    )
    world.barrier()
    world.close()


def test_on_one_machine_numbers_stay_in_host_memory(monkeypatch):
    """A number that goes by way of a GPU is read once all is done that the GPU has queued."""
    devices = []

    def all_gather(values, own):
        devices.append(own.device.type)
        raise InterruptedError

    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    for local_size in (2, 1):
        with pytest.raises(InterruptedError):
            World(0, 2, 0, torch.device("meta"), local_size).all_reduce(3.0)
    assert devices == ["cpu", "meta"]
    assert [choose_backend(*ranks) for ranks in (("cuda", 8, 8), ("xpu", 2, 2))] == [
        "cpu:gloo,cuda:nccl",
        "cpu:gloo,xpu:xccl",
    ]
    assert [choose_backend(*ranks) for ranks in (("cuda", 16, 8), ("cpu", 2, 2), ("cpu", 16, 8))] == [
        "nccl",
        "gloo",
        "gloo",
    ]


def test_two_ranks_agree():
    port = choose_port()
    results = mp.get_context("spawn").Manager().dict()
    mp.spawn(_run_rank, args=(2, port, results), nprocs=2)
    for rank in range(2):
        gathered = ["rank 0", "rank 1"]
        assert results[rank] == (rank == 0, 3.0, 2.0**41 + 1, [2.0, 1.0], [1.0, float(rank)], gathered)


@pytest.mark.parametrize(
    ("variables", "word"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2"),
        ({"RANK": "x"}, "whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
    ],
)
def test_invalid_variables_are_rejected(monkeypatch, variables, word):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=word):
        World.start("cpu")


def test_the_device_is_the_requested_or_the_first_available(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device() == "mps"
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    assert choose_device() == "xpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device() == "cuda" and choose_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="cuda"):
        choose_device("cuda")
    with pytest.raises(UserError, match="tpu"):
        choose_device("tpu")


def test_the_ranks_of_a_launcher_are_counted_on_all_machines(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert count_launched_ranks() == 1
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert count_launched_ranks() == 16
