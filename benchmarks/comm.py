"""Runs ring, tree and parameter server and compares bytes and seconds with the planner's prediction.

Ranks are processes on this machine that communicate over gloo and loopback. Each has a vector of gradients; after each
topology every rank must hold the exact sum (the values are small whole numbers, so that no order of addition rounds).
Counted bytes must equal the prediction of `fledgling/plan/communication.py`. Seconds are predicted from what the same
run measures first: a ping between two ranks (alpha, beta), all ranks sending at once, and one rank adding vectors.

Loopback is memory bandwidth and processor time shared by all ranks, not a network; hence two rates, of one rank alone
and of all ranks together.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.ranks import TIMES, Job, run_ranks
from benchmarks.wire import HEADER
from fledgling.config import UserError
from fledgling.plan import communication

MOST_RANKS = 8
MOST_HEADERS = 1000  # that a rank sends beside the payload of one library collective
LARGEST = 1024  # megabytes of one rank's vector
STATISTICS: dict[str, Callable] = {"median": statistics.median, "least": min}  # least: without the neighbours
PING_SIZES = [4, 1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 22, 1 << 24]  # bytes


@dataclass(frozen=True)
class Calibration:
    """What seconds are predicted from, all measured in the same run: link, sums, and the pings of the link's fit."""

    link: communication.Link
    adding: communication.Bandwidth
    pings: tuple[float, ...]  # seconds, one way

    def to_dict(self, sizes: tuple[int, ...]) -> dict[str, Any]:
        """As plain values; sizes: bytes of the pings."""
        return {
            "link": {
                "alpha": self.link.latency,
                "beta": self.link.bandwidth.per_rank,
                "together": self.link.bandwidth.shared,
            },
            "adding": {"one": self.adding.per_rank, "together": self.adding.shared},
            "pings": [{"bytes": size, "seconds": time} for size, time in zip(sizes, self.pings, strict=True)],
        }


def predictions(job: Job) -> dict[str, communication.Traffic]:
    """What each row of the table should move, by name, in the order in which they run."""
    size, ranks = communication.ITEM_BYTES * job.values, job.ranks
    ring = communication.ring_all_reduce(size, ranks)
    return {
        "ring all-reduce": ring,
        "ring reduce-scatter": communication.reduce_scatter(size, ranks),
        "ring all-gather": communication.all_gather(size, ranks),
        "tree all-reduce": communication.tree_all_reduce(size, ranks),
        **{f"parameter server, {s}": communication.parameter_server(size, ranks, s) for s in job.servers},
        "library all_reduce": ring,
        "library reduce_scatter": ring,  # gloo's is a whole all-reduce of which each rank keeps its chunk
        "library all_gather": communication.all_gather(size, ranks),
    }


def measure_communication(
    ranks: int = 2, megabytes: float = 16, servers: int | None = None, repeats: int = 7
) -> dict[str, Any]:
    """Run every topology with `ranks` processes and vectors of `megabytes` (10^6 bytes); see `table` for the result.

    servers: of the sharded parameter server, default half of the ranks, at least 2; one server always runs too.
    Raises UserError for a set-up that makes no sense, for a rank that dies, and for a sum that is not the sum.
    """
    job = _job(ranks, megabytes, servers, repeats)
    reported = run_ranks(job)
    calibrations = {name: _calibration(job, reported, of) for name, of in STATISTICS.items()}
    rows = {}
    for name, traffic in predictions(job).items():
        own = [one["rows"][name] for one in reported]
        rows[name] = {
            "sum_is_exact": all(row["exact"] for row in own),
            "bytes": _bytes(traffic, own, inside=name.startswith("library")),
            "seconds": {key: _seconds(traffic, own, calibrations[key], of) for key, of in STATISTICS.items()},
        }
    wrong = [name for name, row in rows.items() if not row["sum_is_exact"]]
    if wrong:
        raise UserError(f"not the sum of all ranks after: {', '.join(wrong)}")
    return {
        "ranks": ranks,
        "bytes": communication.ITEM_BYTES * job.values,
        "servers": list(job.servers),
        "repeats": repeats,
        "cores": os.cpu_count() or 1,
        "load": os.getloadavg()[0],
        "calibration": {key: calibration.to_dict(job.pings) for key, calibration in calibrations.items()},
        "bytes_equal": all(row["bytes"]["equal"] for row in rows.values()),
        "topologies": rows,
    }


def _job(ranks: int, megabytes: float, servers: int | None, repeats: int) -> Job:
    """The checked and rounded set-up: p and s, and p times p / 2 for the even chunks of gloo, divide the values."""
    if not 2 <= ranks <= MOST_RANKS:
        why = "one rank has no peer" if ranks == 1 else "all of them share this machine"
        raise UserError(f"ranks: got {ranks}, expected 2 to {MOST_RANKS}: {why}")
    if not 0 < megabytes <= LARGEST:
        raise UserError(f"megabytes: got {megabytes:g}, expected above 0 and at most {LARGEST}")
    if servers is not None and not 1 <= servers <= ranks:
        raise UserError(f"servers: got {servers}, expected 1 to {ranks}, some of the {ranks} ranks")
    if repeats < 1:
        raise UserError(f"repeats: got {repeats}, expected at least 1")
    sharded = max(2, ranks // 2) if servers is None else servers
    whole = math.lcm(ranks, sharded) * 4
    values = max(1, round(megabytes * 1e6 / communication.ITEM_BYTES / whole)) * whole
    pings = tuple(n for n in PING_SIZES if n <= max(communication.ITEM_BYTES * values, 1 << 20))
    return Job(ranks, values, tuple(sorted({1, sharded, ranks})), repeats, pings)


def _calibration(job: Job, reported_value: list[dict[str, Any]], of: Callable) -> Calibration:
    """What the same run says of loopback and of adding; `of` is the statistic taken over its repeats."""
    size = communication.ITEM_BYTES * (job.values // job.ranks)
    pings = tuple(of(times) for times in zip(*reported_value[0]["ping"], strict=True))
    link = communication.fit_link(job.pings, pings, "loopback")
    context = of(_together([one["around"] for one in reported_value]))
    adding = TIMES * size / of(_together([reported_value[0]["alone"]]))
    return Calibration(
        replace(link, bandwidth=replace(link.bandwidth, shared=job.ranks * TIMES * size / context)),
        communication.Bandwidth(
            adding, shared=adding * min(job.ranks, os.cpu_count() or 1)
        ),  # a core adds for one rank
        pings,
    )


def _together(ranks: list[list[tuple[float, float]]]) -> list[float]:
    """Seconds of each repeat from the last rank's start to the last rank's end; of each rank: its (began, ended)."""
    return [max(end for _, end in spans) - max(start for start, _ in spans) for spans in zip(*ranks, strict=True)]


def _bytes(traffic: communication.Traffic, rows: list[dict[str, Any]], inside: bool) -> dict[str, Any]:
    """Predicted bytes by rank beside those counted at our send calls and those that the sockets carried.

    inside: the calls are inside the library. Then only the sockets count, and equal means: the predicted payload and
    whole headers of gloo, nothing else.
    """
    predicted = {"sent": list(traffic.sent), "received": list(traffic.received), "messages": traffic.messages}
    sockets = None
    if rows[0]["sockets"] is not None:
        went, came = zip(*(row["sockets"] for row in rows), strict=True)
        sockets = {"sent": list(went), "received": list(came)}
    over = sum(sockets["sent"]) - sum(traffic.sent) if sockets else 0  # in all: gloo's segments may be uneven by a few
    framed = over % HEADER == 0 and 0 <= over <= MOST_HEADERS * HEADER * len(rows)
    if inside:
        return {"predicted": predicted, "counted": None, "sockets": sockets, "equal": framed}
    sent, received, messages = (list(column) for column in zip(*(row["counted"] for row in rows), strict=True))
    counted = {"sent": sent, "received": received, "messages": sum(messages)}
    return {"predicted": predicted, "counted": counted, "sockets": sockets, "equal": counted == predicted and framed}


def _seconds(
    traffic: communication.Traffic, rows: list[dict[str, Any]], by: Calibration, of: Callable
) -> dict[str, float]:
    """Measured seconds of a topology beside the predicted ones."""
    measured = of(_together([row["times"] for row in rows]))
    predicted = traffic.seconds(by.link, by.adding)
    return {"measured": measured, "predicted": predicted, "error": predicted / measured - 1}


def format_communication(result: dict[str, Any]) -> str:
    """The result of `measure` as lines for people: bytes of the busiest rank, milliseconds, errors."""
    lines = [
        f"{result['ranks']} ranks on {result['cores']} cores, {result['bytes']:,} bytes of gradients a rank, "
        f"{result['repeats']} repeats, load {result['load']:.1f}"
    ]
    for name, by in result["calibration"].items():
        link, adding = by["link"], by["adding"]
        lines.append(
            f"{name}: alpha {link['alpha'] * 1e6:.0f} us, beta {link['beta'] / 1e9:.2f} GB/s, all ranks together "
            f"{link['together'] / 1e9:.2f} GB/s; adding {adding['one'] / 1e9:.0f} GB/s"
        )
    moved = "".join(f"{kind:>13}" for kind in ("predicted", "counted", "sockets"))
    lines += [
        f"{'':<23}{'bytes sent by the busiest rank':^39}{'median, ms':^23}{'least, ms':^23}",
        f"{'':<23}{moved}" + f"{'model':>8}{'measured':>9}{'error':>6}" * 2,
    ]
    for name, row in result["topologies"].items():
        kinds = [row["bytes"][kind] for kind in ("predicted", "counted", "sockets")]
        reported_3 = [f"{name:<23}", *(f"{format(max(kind['sent']), ',') if kind else '-':>13}" for kind in kinds)]
        for one in row["seconds"].values():
            reported_3.append(f"{one['predicted'] * 1e3:8.1f}{one['measured'] * 1e3:9.1f}{one['error']:>+6.0%}")
        lines.append("".join(reported_3))
    different = [name for name, row in result["topologies"].items() if not row["bytes"]["equal"]]
    lines.append("every sum is exact; " + (f"BYTES DIFFER: {', '.join(different)}" if different else "bytes are equal"))
    return "\n".join(lines)
