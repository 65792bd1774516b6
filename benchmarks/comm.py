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

MAX_RANKS = 8
MAX_HEADERS = 1000  # that a rank may send in addition to the payload of one library collective
MAX_MEGABYTES = 1024  # megabytes of one rank's vector
STATISTICS: dict[str, Callable] = {
    "median": statistics.median,
    "least": min,
}  # least: least affected by other load
PING_SIZES = [4, 1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 22, 1 << 24]  # bytes


@dataclass(frozen=True)
class Calibration:
    """The measurements from which seconds are predicted: the link, the bandwidth of additions, the pings of the fit."""

    link: communication.Link
    addition: communication.Bandwidth
    pings: tuple[float, ...]  # seconds, one way

    def to_dict(self, sizes: tuple[int, ...]) -> dict[str, Any]:
        """Returns JSON values; sizes: bytes of the pings."""
        return {
            "link": {
                "alpha": self.link.latency,
                "beta": self.link.bandwidth.per_rank,
                "together": self.link.bandwidth.shared,
            },
            "addition": {"one": self.addition.per_rank, "together": self.addition.shared},
            "pings": [{"bytes": size, "seconds": time} for size, time in zip(sizes, self.pings, strict=True)],
        }


def predict_traffic(job: Job) -> dict[str, communication.Traffic]:
    """Returns the predicted traffic of each row of the table, by name, in the order in which they run."""
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
    """Runs every topology with `ranks` processes and vectors of `megabytes` (10^6 bytes); all values are JSON types.

    Args: servers: of the sharded parameter server; default half of the ranks, at least 2. One server always runs too.

    Raises:
        UserError: a setting is out of range, a rank fails, or a result is not the sum.
    """
    job = _make_job(ranks, megabytes, servers, repeats)
    reports = run_ranks(job)
    calibrations = {name: _make_calibration(job, reports, statistic) for name, statistic in STATISTICS.items()}
    rows: dict[str, dict[str, Any]] = {}
    for name, traffic in predict_traffic(job).items():
        rank_rows = [one["rows"][name] for one in reports]
        rows[name] = {
            "sum_is_exact": all(row["exact"] for row in rank_rows),
            "bytes": _compare_bytes(traffic, rank_rows, inside=name.startswith("library")),
            "seconds": {
                key: _compare_seconds(traffic, rank_rows, calibrations[key], statistic)
                for key, statistic in STATISTICS.items()
            },
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


def _make_job(ranks: int, megabytes: float, servers: int | None, repeats: int) -> Job:
    """Returns checked settings; the number of values is a multiple of 4, p and s, so that all chunks are equal."""
    if not 2 <= ranks <= MAX_RANKS:
        why = "one rank has no peer" if ranks == 1 else "all of them share this machine"
        raise UserError(f"ranks: got {ranks}, expected 2 to {MAX_RANKS}: {why}")
    if not 0 < megabytes <= MAX_MEGABYTES:
        raise UserError(f"megabytes: got {megabytes:g}, expected above 0 and at most {MAX_MEGABYTES}")
    if servers is not None and not 1 <= servers <= ranks:
        raise UserError(f"servers: got {servers}, expected 1 to {ranks}, some of the {ranks} ranks")
    if repeats < 1:
        raise UserError(f"repeats: got {repeats}, expected at least 1")
    sharded = max(2, ranks // 2) if servers is None else servers
    whole = math.lcm(ranks, sharded) * 4
    values = max(1, round(megabytes * 1e6 / communication.ITEM_BYTES / whole)) * whole
    pings = tuple(n for n in PING_SIZES if n <= max(communication.ITEM_BYTES * values, 1 << 20))
    return Job(ranks, values, tuple(sorted({1, sharded, ranks})), repeats, pings)


def _make_calibration(job: Job, reports: list[dict[str, Any]], statistic: Callable) -> Calibration:
    """Returns the calibration from the same run; `statistic` is taken over the repeats."""
    size = communication.ITEM_BYTES * (job.values // job.ranks)
    pings = tuple(statistic(times) for times in zip(*reports[0]["ping"], strict=True))
    link = communication.fit_link(job.pings, pings, "loopback")
    ring_seconds = statistic(_spans_to_seconds([one["ring"] for one in reports]))
    addition = TIMES * size / statistic(_spans_to_seconds([reports[0]["alone"]]))
    return Calibration(
        replace(link, bandwidth=replace(link.bandwidth, shared=job.ranks * TIMES * size / ring_seconds)),
        communication.Bandwidth(
            addition, shared=addition * min(job.ranks, os.cpu_count() or 1)
        ),  # a core adds for one rank
        pings,
    )


def _spans_to_seconds(ranks: list[list[tuple[float, float]]]) -> list[float]:
    """Returns the seconds of each repeat, from the last start to the last end; ranks: (start, end) of each repeat."""
    return [max(end for _, end in spans) - max(start for start, _ in spans) for spans in zip(*ranks, strict=True)]


def _compare_bytes(traffic: communication.Traffic, rows: list[dict[str, Any]], inside: bool) -> dict[str, Any]:
    """Returns the predicted bytes of each rank, those of our send calls, and those of the sockets.

    inside: the send calls are inside the library and are not counted. "equal" then means that the sockets carried the
    predicted payload and whole headers of gloo, nothing else.
    """
    predicted = {"sent": list(traffic.sent), "received": list(traffic.received), "messages": traffic.messages}
    sockets = None
    if rows[0]["sockets"] is not None:
        sent_by_sockets, received_by_sockets = zip(*(row["sockets"] for row in rows), strict=True)
        sockets = {"sent": list(sent_by_sockets), "received": list(received_by_sockets)}
    # Summed over the ranks, because gloo's segments may differ by a few bytes.
    header_bytes = sum(sockets["sent"]) - sum(traffic.sent) if sockets else 0
    is_whole_headers = header_bytes % HEADER == 0 and 0 <= header_bytes <= MAX_HEADERS * HEADER * len(rows)
    if inside:
        return {"predicted": predicted, "counted": None, "sockets": sockets, "equal": is_whole_headers}
    sent, received, messages = (list(column) for column in zip(*(row["counted"] for row in rows), strict=True))
    counted = {"sent": sent, "received": received, "messages": sum(messages)}
    return {
        "predicted": predicted,
        "counted": counted,
        "sockets": sockets,
        "equal": counted == predicted and is_whole_headers,
    }


def _compare_seconds(
    traffic: communication.Traffic, rows: list[dict[str, Any]], calibration: Calibration, statistic: Callable
) -> dict[str, float]:
    """Returns the measured and predicted seconds of a topology, and the relative error."""
    measured = statistic(_spans_to_seconds([row["times"] for row in rows]))
    predicted = traffic.seconds(calibration.link, calibration.addition)
    return {"measured": measured, "predicted": predicted, "error": predicted / measured - 1}


def format_communication(result: dict[str, Any]) -> str:
    """Returns the result of `measure_communication` as a table: bytes of the busiest rank, milliseconds, errors."""
    lines = [
        f"{result['ranks']} ranks on {result['cores']} cores, {result['bytes']:,} bytes of gradients a rank, "
        f"{result['repeats']} repeats, load {result['load']:.1f}"
    ]
    for name, calibration in result["calibration"].items():
        link, addition = calibration["link"], calibration["addition"]
        lines.append(
            f"{name}: alpha {link['alpha'] * 1e6:.0f} us, beta {link['beta'] / 1e9:.2f} GB/s, all ranks together "
            f"{link['together'] / 1e9:.2f} GB/s; adding {addition['one'] / 1e9:.0f} GB/s"
        )
    moved = "".join(f"{kind:>13}" for kind in ("predicted", "counted", "sockets"))
    lines += [
        f"{'':<23}{'bytes sent by the busiest rank':^39}{'median, ms':^23}{'least, ms':^23}",
        f"{'':<23}{moved}" + f"{'model':>8}{'measured':>9}{'error':>6}" * 2,
    ]
    for name, row in result["topologies"].items():
        kinds = [row["bytes"][kind] for kind in ("predicted", "counted", "sockets")]
        cells = [f"{name:<23}", *(f"{format(max(kind['sent']), ',') if kind else '-':>13}" for kind in kinds)]
        for one in row["seconds"].values():
            cells.append(f"{one['predicted'] * 1e3:8.1f}{one['measured'] * 1e3:9.1f}{one['error']:>+6.0%}")
        lines.append("".join(cells))
    different = [name for name, row in result["topologies"].items() if not row["bytes"]["equal"]]
    lines.append("every sum is exact; " + (f"BYTES DIFFER: {', '.join(different)}" if different else "bytes are equal"))
    return "\n".join(lines)
