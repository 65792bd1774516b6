"""Topologies for real: processes over gloo move the predicted bytes, end with the exact sum, and never hang."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.comm import format_communication, measure_communication
from tests.waits import WAIT_SECONDS

LINUX = sys.platform == "linux"


@pytest.mark.parametrize(("ranks", "servers"), [(2, None), (4, 3)])
def test_predicted_bytes_are_counted_bytes(ranks, servers):
    result = measure_communication(ranks, megabytes=0.2, servers=servers, repeats=1)
    assert result["bytes_equal"]
    assert len(result["topologies"]) == 9 + (ranks > 2)
    for name, row in result["topologies"].items():
        assert row["sum_is_exact"], name
        row_bytes = row["bytes"]
        assert (row_bytes["counted"] is None) == name.startswith("library")
        if row_bytes["counted"]:
            assert row_bytes["counted"] == row_bytes["predicted"]
        if LINUX:
            over = [a - b for a, b in zip(row_bytes["sockets"]["sent"], row_bytes["predicted"]["sent"], strict=True)]
            assert all(0 < one < 0.05 * result["bytes"] for one in over), name  # gloo's headers, nothing else
        for seconds in row["seconds"].values():
            assert seconds["measured"] > 0 and seconds["predicted"] > 0
            assert seconds["error"] == pytest.approx(seconds["predicted"] / seconds["measured"] - 1)
    assert "bytes are equal" in format_communication(result)


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        (["--ranks", "1"], "ranks: got 1, expected 2 to 8: one rank has no peer"),
        (["--ranks", "99"], "ranks: got 99, expected 2 to 8"),
        (["--megabytes", "0"], "megabytes: got 0"),
        (["--ranks", "2", "--servers", "3"], "servers: got 3, expected 1 to 2"),
        (["--repeats", "0"], "repeats: got 0"),
    ],
)
def test_a_mistake_is_one_line(words, reported, capsys):
    assert main(["comm", *words]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and reported in err


@pytest.mark.skipif(not LINUX, reason="finds the ranks in /proc")
def test_a_rank_that_dies_is_named_and_no_rank_waits_for_it():
    words = [
        sys.executable,
        "-m",
        "benchmarks",
        "comm",
        "--ranks",
        "3",
        "--megabytes",
        "4",
        "--repeats",
        "9999",
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        while b"1 of 9999" not in os.read(parent.stderr.fileno(), 1000):
            assert parent.poll() is None
        ranks = [child for child in children(parent.pid) if "spawn_main" in command(child)]
        assert len(ranks) == 3
        os.kill(ranks[1], signal.SIGKILL)
        out, err = parent.communicate(timeout=WAIT_SECONDS)
    assert parent.returncode == 1 and out == ""
    assert "error: rank 1 of 3 died (SIGKILL) at: " in err.splitlines()[-1]
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


def children(pid: int) -> list[int]:
    return sorted(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def test_json_is_for_programs(capsys):
    assert main(["comm", "--megabytes", "0.01", "--repeats", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ranks"] == 2 and result["calibration"]["median"]["link"]["beta"] > 0
    assert result["topologies"]["ring all-reduce"]["bytes"]["counted"]["sent"] == [result["bytes"]] * 2
