"""The whole road as a user walks it: one command through all stages, again, talk, measure, report."""

import json
import subprocess
import sys
import time

import pytest

from fledgling.config import USUAL
from tests.tiny import tiny


def fledgling(*arguments, stdin=None):
    return subprocess.run(
        [sys.executable, "-m", "fledgling", *map(str, arguments)],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=90,
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
    assert {e["stage"] for e in evals} == set(USUAL)
    assert {"bits_per_byte", "arithmetic", "arithmetic_unseen", "identity"} <= {e["name"] for e in evals}

    said = fledgling("chat", out, "-p", "Who are you?", "--max-tokens", "8")
    assert said.returncode == 0, said.stderr
    measured = fledgling("eval", "chat", out, "--questions", "2", "--json")
    assert measured.returncode == 0, measured.stderr
    assert {"n", "low", "high", "baseline"} <= set(json.loads(measured.stdout)[0])
    bits = fledgling("eval", "bpb", out, tmp_path / "text", "--json")
    assert bits.returncode == 0, bits.stderr
    assert 0 < json.loads(bits.stdout)[0]["value"] < 20
    assert time.monotonic() - began < 90


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
