"""A few seconds of each campaign; the long ones are started by hand, docs/checkpoints.md has what they gave."""

import json
import os
import subprocess
import sys

import pytest

from fledgling.record import read_jsonl
from tests.campaigns import flips, full_disk, kill


def run_kill_campaign(folder, count: int) -> subprocess.CompletedProcess:
    """Runs the campaign of kills in its own process."""
    options = ("--seed", "5", "--count", str(count), "--first", "1", "--folder", str(folder))
    command = [sys.executable, "-m", "tests.campaigns.kill", *options]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_runs_killed_at_random_moments_resume_with_the_same_bits(tmp_path):
    first = run_kill_campaign(tmp_path, 2)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "2 kills, " in first.stdout and " inside a save: 2 resumed and ended with the same bits" in first.stdout
    again = run_kill_campaign(tmp_path, 2)
    assert again.returncode == 0 and again.stdout == first.stdout and again.stderr == "", "finished shots are stored"
    shots = read_jsonl(tmp_path / "shots-5.jsonl")
    assert [(shot["stage"], shot["aimed_at_save"]) for shot in shots] == [("pretrain", True), ("pretrain", False)]
    (tmp_path / "shots-5.jsonl").write_text(json.dumps(shots[0] | {"problems": ["made up"]}) + "\n")
    failed = run_kill_campaign(tmp_path, 1)
    assert failed.returncode == 1 and "made up" in failed.stdout


def test_a_run_that_ends_with_other_bytes_is_found(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for place in (one, other):
        flips.make_stage(place)
    assert kill.find_differences(one, other, "pretrain") == []
    (other / "pretrain/metrics.jsonl").write_text('{"step": 1, "loss": 2.5, "time": 3}\n')
    (one / "pretrain/metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "time": 4}\n')
    (other / "pretrain/checkpoints/step-00000600/state.json").write_text("{}")
    assert kill.find_differences(one, other, "pretrain") == [
        "pretrain/checkpoints/step-00000600/state.json differs",
        "pretrain/metrics.jsonl differs",
    ]


def test_flipped_bits_are_found(tmp_path):
    hit, problems = flips.run_campaign(tmp_path, 24, seed=5)
    assert problems == [] and len(hit) == 6 and min(hit.values()) == 4
    directory = tmp_path / "pretrain" / "checkpoints"
    manifest = directory / "step-00000600" / "manifest.json"
    digit = manifest.read_bytes().index(b"fledgling checkpoint ") + len(b"fledgling checkpoint ")
    assert all(flips.flip(directory, manifest, 8 * digit + bit) == [] for bit in range(8)), "another version's number"


def test_a_disk_that_is_full_at_any_page_corrupts_nothing(capfd):
    if not full_disk.is_possible():
        pytest.skip("no namespaces to mount a file system in")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["full_disk", "--runs", "1"])
        assert full_disk.main() == 0, capfd.readouterr().out
    out = capfd.readouterr().out
    assert "model.safetensors" in out and "0 failed checks" in out
