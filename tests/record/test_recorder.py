"""The recorder: what is logged is read back, a resumed stage is rewound, a disabled recorder writes nothing."""

import json
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest

from fledgling.record import Recorder, read_jsonl


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves: the recorder's seconds are exact."""
    clock = SimpleNamespace(time=time.time, monotonic=lambda: clock.seconds, seconds=0.0)
    monkeypatch.setattr("fledgling.record.recorder.time", clock)
    return clock


def make_recorder(tmp_path, **options):
    return Recorder(tmp_path / "pretrain", "pretrain", 10, **{"quiet": True, **options})


def test_what_is_logged_is_read_back(tmp_path):
    with make_recorder(tmp_path) as recorder:
        recorder.log_metrics(1, loss=2.5, tokens=np.int64(100), mfu=math.nan)
        assert len(read_jsonl(recorder.stage_dir / "metrics.jsonl")) == 1, "readable while the run continues"
        recorder.log_evaluation(1, "spelling", 0.5, 0.4, 0.6, 100, baseline=0.1, clusters=24)
        recorder.log_sample(1, "Hi\n", 'a "quoted" \u2028 line\nand 火')
        recorder.log_notice("three documents were empty")
        recorder.mark_done(tokens=100)
    metric = read_jsonl(tmp_path / "pretrain/metrics.jsonl")[0]
    assert (metric["step"], metric["loss"], metric["tokens"], metric["mfu"]) == (1, 2.5, 100, None)
    assert {"time", "elapsed"} <= set(metric)
    assert read_jsonl(tmp_path / "pretrain/evals.jsonl") == [
        {"stage": "pretrain", "step": 1, "name": "spelling", "value": 0.5, "low": 0.4, "high": 0.6, "n": 100}
        | {"baseline": 0.1, "chance": None, "tools": None, "clusters": 24, "cluster_unit": ""}
    ]
    assert read_jsonl(tmp_path / "pretrain/samples.jsonl")[0]["text"] == 'a "quoted" \u2028 line\nand 火'
    assert read_jsonl(tmp_path / "pretrain/notices.jsonl")[0]["text"] == "three documents were empty"
    assert json.loads((tmp_path / "pretrain/done.json").read_text())["tokens"] == 100


def test_rewind_drops_later_lines_only(tmp_path):
    with make_recorder(tmp_path) as recorder:
        for step in range(1, 6):
            recorder.log_metrics(step, loss=step)
            recorder.log_evaluation(step, "bits_per_byte", step)
            recorder.log_sample(step, "p", "t")
    with make_recorder(tmp_path) as recorder:
        recorder.rewind(3)
        recorder.log_metrics(4, loss=40)
    assert [line["loss"] for line in read_jsonl(recorder.stage_dir / "metrics.jsonl")] == [1, 2, 3, 40]
    assert [line["step"] for line in read_jsonl(recorder.stage_dir / "evals.jsonl")] == [1, 2, 3]
    assert [line["step"] for line in read_jsonl(recorder.stage_dir / "samples.jsonl")] == [1, 2, 3]


def test_elapsed_continues_after_a_rewind_of_an_open_file(tmp_path, clock):
    with make_recorder(tmp_path) as recorder:
        recorder.log_metrics(1)
        clock.seconds += 100
        recorder.log_metrics(2)
        recorder.rewind(2)
        assert recorder.elapsed == 100
        recorder.rewind(1)
        assert recorder.elapsed == 0
        recorder.log_metrics(2)
    assert [line["step"] for line in read_jsonl(recorder.stage_dir / "metrics.jsonl")] == [1, 2]


def test_what_a_session_does_before_its_first_step_is_work(tmp_path, clock):
    """A run with a budget that was stopped forgot its tokenizer and data, 27 of 34 seconds, and took as much longer."""
    for before in (0, 31):  # a start, and a session that resumes it
        with make_recorder(tmp_path) as recorder:
            clock.seconds += 30
            recorder.rewind(1 if before else -1)
            assert recorder.elapsed == before + 30
            clock.seconds += 1
            recorder.log_metrics(1 + bool(before))
        clock.seconds += 1_000  # a pause
    assert [line["elapsed"] for line in read_jsonl(tmp_path / "pretrain/metrics.jsonl")] == [31, 62]


def test_a_disabled_recorder_writes_nothing(tmp_path):
    with make_recorder(tmp_path, quiet=False, enabled=False) as recorder:
        recorder.log_metrics(1, loss=1.0)
        recorder.log_evaluation(1, "x", 1.0)
        recorder.log_notice("hello")
        recorder.show_progress(1, loss=1.0)
        recorder.rewind(0)
        recorder.mark_done()
    assert list(tmp_path.iterdir()) == []


def test_quiet_prints_nothing(tmp_path, capsys):
    with make_recorder(tmp_path) as recorder:
        recorder.show_progress(10, loss=1.0)
        recorder.log_notice("x")
    assert capsys.readouterr() == ("", "")


def test_a_notice_that_is_not_printed_is_recorded(tmp_path, capsys):
    with make_recorder(tmp_path, quiet=False) as recorder:
        recorder.log_notice("seen")
        recorder.log_notice("one of many", is_printed=False)
    printed = capsys.readouterr().err
    assert "seen" in printed and "one of many" not in printed
    assert [line["text"] for line in read_jsonl(tmp_path / "pretrain/notices.jsonl")] == ["seen", "one of many"]


def test_no_notice_is_erased_by_a_rewind(tmp_path):
    with make_recorder(tmp_path) as recorder:
        recorder.log_notice("skipped 1 empty")
        recorder.rewind(-1)
        recorder.log_metrics(1, loss=1.0)
        recorder.show_progress(7)
        recorder.log_notice("back to the weights of step 3")
    with make_recorder(tmp_path) as recorder:
        recorder.rewind(0)
    texts = [line["text"] for line in read_jsonl(tmp_path / "pretrain/notices.jsonl")]
    assert texts == ["skipped 1 empty", "back to the weights of step 3"]
    assert read_jsonl(tmp_path / "pretrain/metrics.jsonl") == []


def test_a_logger_gets_values_of_another_number_of_cases_as_another_series(tmp_path):
    got = []
    with make_recorder(tmp_path) as recorder:
        recorder._loggers = [type("Logger", (), {"write": lambda self, v, step: got.append(v), "close": lambda s: 0})()]
        recorder.log_evaluation(4, "spelling", 0.5, n=50)
        recorder.log_evaluation(4, "spelling", 0.6, n=200)
    assert got == [{"eval/spelling/50": 0.5}, {"eval/spelling/200": 0.6}]


def test_work_that_is_lost_is_reported_and_not_counted(tmp_path, clock):
    with make_recorder(tmp_path) as recorder:
        recorder.log_metrics(1)
        clock.seconds += 100
        recorder.log_metrics(2)
    with make_recorder(tmp_path) as recorder:
        recorder.rewind(1)
        assert recorder.elapsed == 0
        recorder.rewind(1)
    texts = [line["text"] for line in read_jsonl(tmp_path / "pretrain/notices.jsonl")]
    assert texts == ["100 s of work after step 1 were lost; the seconds leave them out"]
