"""The metrics that the loop records of a step."""

from pathlib import Path

from fledgling.plan.measured_speed import MeasuredSpeed, list_speeds, save_speed
from fledgling.record import read_jsonl
from fledgling.runtime import device
from fledgling.train import run
from tests.tiny import tiny


def run_with_peaks(tmp_path, monkeypatch, first: float, further: float) -> tuple[list[dict], list[str]]:
    """Returns the metrics and notices of three steps on a machine whose first and further peaks are these."""
    peaks = iter([first])
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: next(peaks, further))
    recipe = tiny(tmp_path, **{"pretrain.steps": 3})
    run.run_stage(recipe, "pretrain", quiet=True, select_evals=lambda evals: ())
    stage = Path(recipe.run.out) / "pretrain"
    return read_jsonl(stage / "metrics.jsonl"), [line["text"] for line in read_jsonl(stage / "notices.jsonl")]


def test_a_peak_that_a_step_exceeds_is_measured_again_and_told(tmp_path, monkeypatch):
    """It was measured on a busy machine; silently taking the step as the peak would give a share of 100 %."""
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path / "cache"))
    for name in ("cpu", "cpu-bf16"):
        save_speed(MeasuredSpeed(name, 0.5, 2.0, 9_000.0, "a model", "2026-01-02", 1e9, 4096))
    lines, notices = run_with_peaks(tmp_path, monkeypatch, 1.0, 1e15)
    assert len(lines) == 3 and all(0 < line["mfu"] < 0.01 and line["peak_flops"] == 1e15 for line in lines)
    (problem,) = [text for text in notices if "measured too low" in text]
    assert "measured again: 1,000,000.0" in problem
    assert "of 2026-01-02" in problem and "it is deleted" in problem, "a stored peak that is exceeded too"
    assert [len(list_speeds("cpu")), len(list_speeds("cpu-bf16"))].count(0) == 1, "that of the dtype in use"


def test_without_a_peak_above_the_steps_no_mfu_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path / "cache"))
    for name in ("cpu", "cpu-bf16"):
        save_speed(MeasuredSpeed(name, 0.5, 0.5, 9_000.0, "a model", "2026-01-02", 1e9, 4096))
    lines, notices = run_with_peaks(tmp_path, monkeypatch, 1.0, 2.0)
    assert "it is deleted" in notices[0], "the peak measured at the start is twice the stored one"
    assert len(lines) == 3 and not any("mfu" in line or "peak_flops" in line for line in lines)
    assert sum("MFU is not recorded" in text for text in notices) == 1
