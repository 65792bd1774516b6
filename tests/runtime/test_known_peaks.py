"""A peak that was measured while other processes computed is doubted, because more was reached before."""

import json

import pytest

from fledgling.config import RunConfig
from fledgling.runtime import device
from fledgling.runtime.known_peaks import compare_with_known_peak, find_peak_file
from fledgling.runtime.world import World
from tests.ranks import one_thread

CPU = device.torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path / "cache"))


def never():
    raise AssertionError("nothing to doubt")


def test_a_peak_far_below_the_known_one_is_measured_again_and_the_higher_one_counts():
    assert compare_with_known_peak("a", 166e9, never) == (166e9, "")
    assert compare_with_known_peak("a", 155e9, never) == (155e9, ""), "noise"
    assert compare_with_known_peak("another machine", 20e9, never) == (20e9, "")
    peak, text = compare_with_known_peak("a", 120e9, lambda: 164e9)
    assert peak == 164e9 and text.startswith("120 GFLOP/s at first, 166 on 2") and text.endswith(": measured again")
    peak, text = compare_with_known_peak("a", 120e9, lambda: 125e9)
    assert peak == 166e9 and "125 when measured again: other processes compute now, or the machine has become" in text
    assert str(find_peak_file()) in text, "it can be deleted"
    assert compare_with_known_peak("a", 180e9, never) == (180e9, "")
    assert json.loads(find_peak_file().read_text())["a"]["peak_flops"] == 180e9


@pytest.mark.parametrize(
    "text",
    ["", "[1]", '{"a": 1}', '{"a": {"peak_flops": 1e30, "date": "x"}}', '{"a": {"peak_flops": NaN, "date": ""}}'],
)
def test_a_corrupt_file_says_nothing(text):
    find_peak_file().parent.mkdir()
    find_peak_file().write_text(text)
    assert compare_with_known_peak("a", 2e9, never) == (2e9, "")
    assert json.loads(find_peak_file().read_text())["a"]["peak_flops"] == 2e9


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert compare_with_known_peak("a", 2e9, never) == (2e9, "")


def test_a_stage_that_starts_doubts_its_peak_and_says_so(monkeypatch):
    monkeypatch.setattr(device, "compare_with_known_peak", compare_with_known_peak)
    peaks = iter([166e9, 120e9, 164e9])
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: next(peaks))
    with one_thread():
        setups = [
            device.set_up_device(RunConfig(dtype="float32", compile="off", threads=1), World(0, 1, 0, CPU))
            for _ in range(2)
        ]
    assert [setup.peak_flops for setup in setups] == [166e9, 164e9]
    assert "peak 164 GFLOP/s measured (120 GFLOP/s at first, 166 on" in setups[1].summary
    assert setups[0].summary.endswith("peak 166 GFLOP/s measured")
