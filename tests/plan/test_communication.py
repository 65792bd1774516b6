"""Tests that the communication formulas equal the topologies' own code, message by message, on simulated ports."""

import json
import math
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from queue import Queue
from threading import Thread

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import topologies
from fledgling.cli import main
from fledgling.config import Recipe, UserError
from fledgling.plan import communication
from fledgling.plan.hardware import DEVICES
from fledgling.plan.plan import PlanSettings, make_plan
from fledgling.plan.text import format_plan
from tests.waits import WAIT_SECONDS

ALPHA, BETA = 3.0, 2.0  # seconds per message and bytes per second of the simulated ports


@dataclass
class Port:
    """A rank's port with a clock: a message starts once both ends are ready, and takes alpha + n / beta."""

    rank: int
    ranks: int
    lines: dict
    clock: float = 0.0
    sent: int = 0
    received: int = 0
    messages: int = 0
    seen: list = field(default_factory=list)

    def exchange(self, outgoing, to, incoming, source):
        start = end = self.clock
        if outgoing is not None:
            self.lines[self.rank, to].put((outgoing.clone(), start))
            self.sent += outgoing.nbytes
            self.messages += 1
        if incoming is not None:
            vector, ready = self.lines[source, self.rank].get(timeout=WAIT_SECONDS)
            incoming.copy_(vector)
            self.received += incoming.nbytes
            done = max(start, ready) + ALPHA + incoming.nbytes / BETA
            self.lines[self.rank, source, "done"].put(done)
            end = max(end, done)
        if outgoing is not None:
            end = max(end, self.lines[to, self.rank, "done"].get(timeout=WAIT_SECONDS))
        self.clock = end


def simulate(run, ranks, values):
    """Runs a topology on every rank at once; returns the ports and the vectors."""
    lines = defaultdict(Queue)
    for a in range(ranks):
        for b in range(ranks):
            lines[a, b], lines[a, b, "done"] = Queue(), Queue()
    ports = [Port(rank, ranks, lines) for rank in range(ranks)]
    vectors = [torch.arange(values, dtype=torch.float32) + rank * 100 for rank in range(ranks)]
    threads = [Thread(target=run, args=(port, vector)) for port, vector in zip(ports, vectors, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive()
    return ports, vectors


def total(ranks, values):
    return sum(torch.arange(values, dtype=torch.float32) + rank * 100 for rank in range(ranks))


def assert_agrees(traffic, ports):
    assert traffic.sent == tuple(port.sent for port in ports)
    assert traffic.received == tuple(port.received for port in ports)
    assert traffic.messages == sum(port.messages for port in ports)
    assert traffic.busiest_bytes == max(max(port.sent, port.received) for port in ports)
    link = communication.Link("simulated", ALPHA, communication.Bandwidth(BETA))
    assert traffic.seconds(link) == pytest.approx(max(port.clock for port in ports))


@settings(max_examples=40, deadline=None)
@given(ranks=st.integers(2, 9), size=st.integers(1, 400))
def test_a_ring_moves_the_bytes_of_the_formula(ranks, size):
    values = communication.chunk_bytes(size, ranks) // 4 * ranks  # padded to whole chunks
    ports, vectors = simulate(topologies.ring_all_reduce, ranks, values)
    assert all(torch.equal(vector, total(ranks, values)) for vector in vectors)
    assert_agrees(communication.ring_all_reduce(size, ranks), ports)
    ports, vectors = simulate(topologies.ring_reduce_scatter, ranks, values)
    for rank, vector in enumerate(vectors):
        assert torch.equal(vector.view(ranks, -1)[rank], total(ranks, values).view(ranks, -1)[rank])
    assert_agrees(communication.reduce_scatter(size, ranks), ports)
    ports, _ = simulate(topologies.ring_all_gather, ranks, values)
    assert_agrees(communication.all_gather(size, ranks), ports)


@settings(max_examples=40, deadline=None)
@given(ranks=st.integers(2, 9), values=st.integers(1, 100))
def test_a_tree_moves_the_bytes_of_the_formula(ranks, values):
    ports, vectors = simulate(topologies.tree_all_reduce, ranks, values)
    assert all(torch.equal(vector, total(ranks, values)) for vector in vectors)
    assert_agrees(communication.tree_all_reduce(4 * values, ranks), ports)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), ranks=st.integers(2, 9), size=st.integers(1, 400))
def test_a_parameter_server_moves_the_bytes_of_the_formula(data, ranks, size):
    servers = data.draw(st.integers(1, ranks))
    values = communication.chunk_bytes(size, servers) // 4 * servers
    ports, vectors = simulate(partial(topologies.parameter_server, servers=servers), ranks, values)
    assert all(torch.equal(vector, total(ranks, values)) for vector in vectors)
    assert_agrees(communication.parameter_server(size, ranks, servers), ports)


@given(ranks=st.integers(1, 300), chunks=st.integers(1, 50))
def test_traffic_equals_the_published_formulas(ranks, chunks):
    n = 4 * ranks * chunks  # bytes, so that p divides the values
    ring = communication.ring_all_reduce(n, ranks)
    assert set(ring.sent) == set(ring.received) == {2 * (ranks - 1) * n // ranks}
    assert ring.reduced_total == communication.tree_all_reduce(n, ranks).reduced_total == (ranks - 1) * n
    sharded, single = communication.parameter_server(n, ranks, ranks), communication.parameter_server(n, ranks)
    assert (sharded.sent, sharded.path, sharded.rounds) == (ring.sent, ring.path, ring.rounds)
    assert single.path == ranks * ring.path and max(single.sent) == (ranks - 1) * n
    tree = communication.tree_all_reduce(n, ranks)
    assert tree.rounds == 2 * math.ceil(math.log2(ranks)) and sum(tree.sent) == 2 * (ranks - 1) * n
    assert communication.zero1(n, n, ranks) == communication.zero2(n, n, ranks) == ring
    zero2 = communication.zero2(n, n, ranks, micro_batches=5)
    assert zero2.path == 3 * ring.path and zero2.sent[0] == 3 * ring.sent[0]


def test_a_server_may_answer_in_another_dtype():
    half = communication.parameter_server(4_000, ranks=5, servers=2, pulled_size=2_000)
    assert half.sent[4] == 4_000 and half.received[4] == 2_000  # a rank that is not a server
    assert half.path == 4 * (2_000 + 1_000)


def test_a_shared_medium_carries_the_bytes_of_all_ranks():
    ring = communication.ring_all_reduce(4_000, 4)
    own, shared = communication.Bandwidth(100.0), communication.Bandwidth(100.0, shared=100.0)
    link = communication.Link("bus", 0.0, shared)
    assert ring.seconds(communication.Link("ports", 0.0, own)) == pytest.approx(6_000 / 100)
    assert ring.seconds(link) == pytest.approx(24_000 / 100)
    assert ring.seconds(link, communication.Bandwidth(10.0)) == pytest.approx(24_000 / 100 + 3_000 / 10)


@given(alpha=st.floats(1e-6, 1e-2), beta=st.floats(1e6, 1e12))
def test_fit_link_recovers_latency_and_bandwidth(alpha, beta):
    sizes = [4, 1_000, 100_000, 10_000_000, 1_000_000_000]
    link = communication.fit_link(sizes, [alpha + size / beta for size in sizes])
    assert link.latency == pytest.approx(alpha, rel=1e-3)
    if 1e9 / beta > 1e-3 * alpha:  # else no message is long enough to measure bandwidth
        assert link.bandwidth.per_rank == pytest.approx(beta, rel=1e-2)
    disturbed = communication.fit_link([4, 1_000, 2_000], [3.0, 2.0, 1.0])
    assert disturbed.bandwidth.per_rank == 2_000, "times of a busy machine gave an infinite bandwidth"


def test_the_network_is_the_bottleneck_below_the_required_bandwidth():
    ethernet, n, compute = communication.find_link("Ethernet-10G"), 2_243_952_640, 4.0
    ring = communication.ring_all_reduce(n, 8)
    needed = communication.required_bandwidth(ring, compute, ethernet.latency)
    just = communication.Link("just", ethernet.latency, communication.Bandwidth(needed))
    assert ring.seconds(just) == pytest.approx(compute)
    assert communication.required_bandwidth(ring, 1e-5, ethernet.latency) == math.inf
    bound = communication.first_bound_rank_count(lambda p: communication.ring_all_reduce(n, p), compute * 8, ethernet)
    assert communication.ring_all_reduce(n, bound).seconds(ethernet) > compute * 8 / bound
    assert communication.ring_all_reduce(n, bound // 2).seconds(ethernet) <= compute * 8 / (bound // 2)
    assert communication.first_bound_rank_count(lambda p: communication.ring_all_reduce(4, p), 1e9, ethernet) is None
    assert communication.step_seconds(3.0, 1.0) == 4.0
    assert communication.step_seconds(3.0, 1.0, overlap=True) == 3.0
    assert communication.step_seconds(3.0, 5.0, overlap=True) == pytest.approx(6.0)


def test_the_plan_has_a_communication_section():
    published = Recipe()
    alone = make_plan(published, PlanSettings(gpu="h100", gpus=1))["communication"]
    assert alone["topologies"] == {}
    eight = make_plan(published, PlanSettings(gpu="h100", gpus=8))
    section, count = eight["communication"], eight["parameters"]["total"]
    ring = section["topologies"]["ring all-reduce"]
    assert section["link"]["name"] == "nvlink-h100"
    assert ring["bytes_sent"] == communication.ring_all_reduce(4 * count, 8).busiest_bytes
    assert ring["share_of_step"] == pytest.approx(ring["seconds"] / (ring["seconds"] + section["compute_seconds"]))
    slow = make_plan(published, PlanSettings(gpu="h100", gpus=8, link="ethernet-1g"))["communication"]["topologies"]
    assert {topology["bottleneck"] for topology in slow.values()} == {"network"}
    with pytest.raises(UserError, match='unknown link "nvlnk"'):
        make_plan(published, PlanSettings(link="nvlnk"))


def test_the_command_prints_the_communication_section(capsys):
    words = ["plan", "d20-8xh100", "--link", "ethernet-100g"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "ring all-reduce" in out and "bound by network" in out and "bound by compute" in out
    assert main([*words, "--json"]) == 0
    section = json.loads(capsys.readouterr().out)["communication"]
    assert section["gradient_bytes"] == 4 * 560_988_160
    assert section["topologies"]["ZeRO-1"]["bytes_sent"] == 2 * 7 * 4 * 560_988_160 // 8
    assert main(["plan", "--depth", "4", "--gpus", "1"]) == 0
    assert "communication" not in capsys.readouterr().out


def test_every_device_that_has_a_link_of_its_own_is_in_the_table():
    assert set(communication.DEFAULT_LINKS) <= set(DEVICES)
    assert set(communication.DEFAULT_LINKS.values()) <= set(communication.LINKS)
    assert communication.default_link("a100-80") == "nvlink-a100" and communication.default_link("t4") == "pcie4"


def test_between_machines_the_network_counts_and_the_plan_says_that_it_is_assumed():
    assert (
        communication.default_link("h100", 8) == "nvlink-h100" and communication.default_link("cpu", 64) == "loopback"
    )
    sixteen = make_plan(Recipe(), PlanSettings(gpu="h100", gpus=16, strict=False))
    link, ring = sixteen["communication"]["link"], sixteen["communication"]["topologies"]["ring all-reduce"]
    assert (link["name"], link["machines"], link["assumed"]) == ("infiniband-ndr", 2, True)
    named = make_plan(Recipe(), PlanSettings(gpu="h100", gpus=16, link="nvlink-h100", strict=False))["communication"]
    assert ring["seconds"] > 4 * named["topologies"]["ring all-reduce"]["seconds"]
    assert named["link"]["machines"] is None and not named["link"]["assumed"]
    line = "over infiniband-ndr (assumed between 2 machines of 8; name another with --link), 50 GB/s"
    assert line in format_plan(sixteen) and "assumed between" not in format_plan(sixteen | {"communication": named})
