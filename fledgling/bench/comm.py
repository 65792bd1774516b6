"""Every topology, really run: bytes and seconds beside what `fledgling/plan/comm.py` predicts for them.

The one idea: a prediction that is not held against the thing predicts nothing. Ranks are processes on this
machine that speak gloo over loopback; each brings a vector of gradients, and after each topology every rank
must hold the true sum, bit by bit (the values are small whole numbers, so that no order of adding rounds).
Bytes must be equal. Seconds are predicted from what the same run measures first: a ping-pong between two ranks
(alpha, beta), all ranks passing a message around at once, and adding vectors.

What it is not: a network. Loopback is memory and two cores' time, shared by all ranks; hence the two rates,
of one alone and of all together.
"""

from __future__ import annotations

import math
import os
import statistics
from dataclasses import replace
from typing import Any

from fledgling.bench.ranks import Job, run_ranks
from fledgling.bench.wire import HEADER
from fledgling.config import UserError
from fledgling.plan import comm

MOST_RANKS = 8
MOST_HEADERS = 1000  # that a rank sends beside the payload of one library collective
LARGEST = 1024  # megabytes of one rank's vector
PING_SIZES = [4, 1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 22, 1 << 24]  # bytes


def predictions(job: Job) -> dict[str, comm.Traffic]:
    """What each row of the table should move, by name, in the order in which they run."""
    size, ranks = comm.ITEM * job.values, job.ranks
    ring = comm.ring_all_reduce(size, ranks)
    return {
        "ring all-reduce": ring,
        "ring reduce-scatter": comm.reduce_scatter(size, ranks),
        "ring all-gather": comm.all_gather(size, ranks),
        "tree all-reduce": comm.tree_all_reduce(size, ranks),
        **{f"parameter server, {s}": comm.parameter_server(size, ranks, s) for s in job.servers},
        "library all_reduce": ring,
        "library reduce_scatter": ring,  # gloo's is a whole all-reduce of which each rank keeps its chunk
        "library all_gather": comm.all_gather(size, ranks),
    }


def measure(ranks: int = 2, megabytes: float = 16, servers: int | None = None, repeats: int = 7) -> dict[str, Any]:
    """Run every topology with `ranks` processes and vectors of `megabytes` (10^6 bytes); see `table` for the result.

    servers: of the sharded parameter server, default half of the ranks, at least 2; one server always runs too.
    Raises UserError for a set-up that makes no sense, for a rank that dies, and for a sum that is not the sum.
    """
    job = _job(ranks, megabytes, servers, repeats)
    told = run_ranks(job)
    size = comm.ITEM * job.values
    link = comm.fit(job.pings, told[0]["ping"], "loopback")
    piece = size // ranks
    around = statistics.median(one["around"] for one in told)
    link = replace(link, rate=replace(link.rate, together=ranks * piece / around))
    alone, crowded = told[0]["alone"], max(one["crowded"] for one in told)
    sums = comm.Rate(piece / alone, together=ranks * piece / crowded)
    rows = {name: _row(name, traffic, told, link, sums) for name, traffic in predictions(job).items()}
    wrong = [name for name, row in rows.items() if not row["sum_is_exact"]]
    if wrong:
        raise UserError(f"not the sum of all ranks after: {', '.join(wrong)}")
    return {
        "ranks": ranks,
        "bytes": size,
        "servers": list(job.servers),
        "repeats": repeats,
        "cores": os.cpu_count() or 1,
        "load": os.getloadavg()[0],
        "link": {"alpha": link.latency, "beta": link.rate.one, "beta_together": link.rate.together},
        "ping_pong": [{"bytes": n, "seconds": t} for n, t in zip(job.pings, told[0]["ping"], strict=True)],
        "adding": {"one": sums.one, "together": sums.together},
        "topologies": rows,
        "bytes_equal": all(row["bytes_equal"] for row in rows.values()),
    }


def _job(ranks: int, megabytes: float, servers: int | None, repeats: int) -> Job:
    """The checked and rounded set-up: p and s, and p times p / 2 for the even chunks of gloo, divide the values."""
    if not 2 <= ranks <= MOST_RANKS:
        why = "one rank has nobody to speak to" if ranks == 1 else "all of them share this machine"
        raise UserError(f"ranks: got {ranks}, expected 2 to {MOST_RANKS}: {why}")
    if not 0 < megabytes <= LARGEST:
        raise UserError(f"megabytes: got {megabytes:g}, expected above 0 and at most {LARGEST}")
    if servers is not None and not 1 <= servers <= ranks:
        raise UserError(f"servers: got {servers}, expected 1 to {ranks}, some of the {ranks} ranks")
    if repeats < 1:
        raise UserError(f"repeats: got {repeats}, expected at least 1")
    sharded = max(2, ranks // 2) if servers is None else servers
    whole = math.lcm(ranks, sharded) * 4
    values = max(1, round(megabytes * 1e6 / comm.ITEM / whole)) * whole
    pings = tuple(n for n in PING_SIZES if n <= max(comm.ITEM * values, 1 << 20))
    return Job(ranks, values, tuple(sorted({1, sharded, ranks})), repeats, pings)


def _row(
    name: str, traffic: comm.Traffic, told: list[dict[str, Any]], link: comm.Link, sums: comm.Rate
) -> dict[str, Any]:
    """Measured beside predicted for one topology."""
    rows = [one["rows"][name] for one in told]
    spans = zip(*(row["times"] for row in rows), strict=True)  # of one repeat: (began, ended) by rank
    times = [max(end for _, end in span) - max(start for start, _ in span) for span in spans]
    seconds, predicted = statistics.median(times), traffic.seconds(link, sums)
    sockets = None if rows[0]["sockets"] is None else [row["sockets"] for row in rows]
    row: dict[str, Any] = {
        "sum_is_exact": all(row["exact"] for row in rows),
        "predicted": {
            "sent": list(traffic.sent),
            "received": list(traffic.received),
            "messages": traffic.messages,
            "busiest_link": traffic.busiest,
            "seconds": predicted,
            "seconds_ports_only": traffic.seconds(replace(link, rate=comm.Rate(link.rate.one)), comm.Rate(sums.one)),
        },
        "seconds": {"median": seconds, "least": min(times), "most": max(times)},
        "error": predicted / seconds - 1,
    }
    if name.startswith("library"):  # nobody counts inside it but the sockets: payload and whole headers
        row["counted"] = None
        row["bytes_equal"] = sockets is None or all(
            0 <= went - sent <= MOST_HEADERS * HEADER and (went - sent) % HEADER == 0
            for (went, _), sent in zip(sockets, traffic.sent, strict=True)
        )
    else:
        sent, received, messages = (list(column) for column in zip(*(row["counted"] for row in rows), strict=True))
        row["counted"] = {"sent": sent, "received": received, "messages": sum(messages)}
        row["bytes_equal"] = (sent, received, sum(messages)) == (
            list(traffic.sent),
            list(traffic.received),
            traffic.messages,
        )
    row["sockets"] = sockets and {"sent": [went for went, _ in sockets], "received": [came for _, came in sockets]}
    return row


def table(result: dict[str, Any]) -> str:
    """The result of `measure` as lines for people: bytes of the busiest rank, milliseconds, errors."""
    link, sums = result["link"], result["adding"]
    lines = [
        f"{result['ranks']} ranks on {result['cores']} cores, {result['bytes']:,} bytes of gradients a rank, "
        f"median of {result['repeats']}, load {result['load']:.1f}",
        f"loopback: alpha {link['alpha'] * 1e6:.0f} us, beta {link['beta'] / 1e9:.2f} GB/s, "
        f"all ranks together {link['beta_together'] / 1e9:.2f} GB/s",
        f"adding: {sums['one'] / 1e9:.2f} GB/s alone, {sums['together'] / 1e9:.2f} GB/s all ranks together",
        f"{'':<26} {'bytes sent by the busiest rank':^44} {'milliseconds':^26}",
        f"{'':<26} {'predicted':>14} {'counted':>14} {'sockets':>14} {'predicted':>10} {'measured':>9} {'error':>6}",
    ]
    for name, row in result["topologies"].items():
        counted = f"{max(row['counted']['sent']):,}" if row["counted"] else "-"
        carried = f"{max(row['sockets']['sent']):,}" if row["sockets"] else "-"
        lines.append(
            f"{name:<26} {max(row['predicted']['sent']):>14,} {counted:>14} {carried:>14} "
            f"{row['predicted']['seconds'] * 1e3:10.1f} {row['seconds']['median'] * 1e3:9.1f} {row['error']:>+6.0%}"
        )
    different = [name for name, row in result["topologies"].items() if not row["bytes_equal"]]
    lines.append("every sum is exact; " + (f"BYTES DIFFER: {', '.join(different)}" if different else "bytes are equal"))
    return "\n".join(lines)
