"""A few seconds of each campaign; the long ones are run by hand, see docs/benchmarks.md."""

import pytest

from tests.campaigns import flips, full_disk, kill


@pytest.mark.timeout(200)
def test_kills_at_random_instants(tmp_path):
    shots = kill.campaign(tmp_path, 4, seed=5, say=print)
    assert [shot["problems"] for shot in shots] == [[]] * 4, kill.summary(shots)
    assert any(shot["in_a_save"] for shot in shots) and "4 resumed and ended with the same bits" in kill.summary(shots)
    assert kill.campaign(tmp_path, 4, seed=5, say=print) == shots, "shots that were fired are kept"


def test_a_run_that_ends_elsewhere_would_be_seen(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for place in (one, other):
        flips.stage_of(place)
    assert kill.differences(one, other, "pretrain") == []
    (other / "pretrain/metrics.jsonl").write_text('{"step": 1, "loss": 2.5, "time": 3}\n')
    (one / "pretrain/metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "time": 4}\n')
    (other / "pretrain/checkpoints/step-00000600/state.json").write_text("{}")
    assert kill.differences(one, other, "pretrain") == [
        "pretrain/checkpoints/step-00000600/state.json differs",
        "pretrain/metrics.jsonl differs",
    ]


def test_flipped_bits(tmp_path):
    hit, problems = flips.campaign(tmp_path, 24, seed=5)
    assert problems == [] and len(hit) == 6 and min(hit.values()) == 4


def test_a_full_disk_at_each_page(capfd):
    if not full_disk.possible():
        pytest.skip("no namespaces to mount a file system in")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["full_disk", "--runs", "1"])
        assert full_disk.main() == 0, capfd.readouterr().out
    out = capfd.readouterr().out
    assert "model.safetensors" in out and "0 broken promises" in out
