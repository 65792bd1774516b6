"""The whole road as a user walks it: one command through all stages, again, talk, measure, report."""

import json
import subprocess
import sys
import time

import pytest
import torch

from fledgling.config import DEFAULT_STAGES
from fledgling.record import read_jsonl
from fledgling.runtime.device import should_compile
from tests.tiny import tiny


def fledgling(*arguments, stdin=None, timeout=90):
    return subprocess.run(
        [sys.executable, "-m", "fledgling", *map(str, arguments)],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=timeout,
    )


@pytest.mark.journey
def test_from_nothing_to_a_model_to_talk_to(tmp_path):
    began = time.monotonic()
    tiny(tmp_path)
    recipe, out = tmp_path / "tiny.toml", tmp_path / "run"
    first = fledgling("speedrun", recipe)
    assert first.returncode == 0, first.stderr[-2000:]
    assert "arithmetic" in first.stdout and "rl" in first.stdout
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")

    again = fledgling("speedrun", recipe)
    assert again.returncode == 0 and "done" in again.stderr

    told = fledgling("report", out, "--json")
    evals = json.loads(told.stdout)["evals"]
    assert {e["stage"] for e in evals} == set(DEFAULT_STAGES)
    assert {"bits_per_byte", "arithmetic", "arithmetic_unseen", "identity"} <= {e["name"] for e in evals}

    said = fledgling("chat", out, "-p", "Who are you?", "--max-new-tokens", "8")
    assert said.returncode == 0, said.stderr
    measured = fledgling("eval", "chat", out, "--questions", "2", "--json")
    assert measured.returncode == 0, measured.stderr
    assert {"n", "low", "high", "baseline"} <= set(json.loads(measured.stdout)[0])
    bits = fledgling("eval", "bpb", out, tmp_path / "text", "--json")
    assert bits.returncode == 0, bits.stderr
    assert 0 < json.loads(bits.stdout)[0]["value"] < 20
    assert time.monotonic() - began < 90


@pytest.mark.journey
@pytest.mark.skipif(not should_compile("auto", torch.device("cpu")), reason="torch.compile needs a C++ compiler here")
def test_a_compiled_run_learns_what_an_eager_one_does(tmp_path):
    """Compiled, as runs are by default: blocks, loss and the step whose memory is measured meet."""
    tiny(tmp_path)
    losses = {}
    for compiled in ("on", "off"):
        out = tmp_path / compiled
        settings = (f"--set=run.out={out}", f"--set=run.compile={compiled}")
        done = fledgling("train", "pretrain", tmp_path / "tiny.toml", *settings, timeout=400)
        assert done.returncode == 0, done.stderr[-2000:]
        losses[compiled] = [one["loss"] for one in read_jsonl(out / "pretrain" / "metrics.jsonl")]
    assert len(losses["on"]) == 4 and losses["on"] == pytest.approx(losses["off"], rel=1e-4)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("chat", "nowhere", "-p", "hello"), "nowhere does not exist"),
        (("train", "sft", "quickstart", "--set", "run.out=/nonexistent/x"), "/nonexistent"),
        (("train", "pretrain", "quickstart", "--set", "model.dept=3"), "did you mean"),
    ],
)
def test_a_mistake_gets_one_line(arguments, words):
    told = fledgling(*arguments)
    assert told.returncode == 1
    assert words in told.stderr and "Traceback" not in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1
