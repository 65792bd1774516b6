"""The run directory: whole lines, torn lines, rewinding, the progress line, optional sinks."""

import errno
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledgling.config import UserError
from fledgling.record import (
    Recorder,
    collect_environment,
    jsonl,
    make_write_error,
    progress_bar,
    read_jsonl,
    write_json,
)
from fledgling.record.progress_bar import format_count, format_duration, format_metric


def recorder(tmp_path, **options):
    return Recorder(tmp_path / "pretrain", "pretrain", 10, **{"quiet": True, **options})


def test_lines_are_written_whole_and_read_back(tmp_path):
    with recorder(tmp_path) as r:
        r.log_metrics(1, loss=2.5, tokens=np.int64(100), mfu=math.nan)
        assert len(read_jsonl(r.stage_dir / "metrics.jsonl")) == 1, "readable while the run goes on"
        r.log_evaluation(1, "spelling", 0.5, 0.4, 0.6, 100, baseline=0.1)
        r.log_sample(1, "Hi\n", 'a "quoted" \u2028 line\nand 火')
        r.log_notice("three documents were empty")
        r.mark_done(tokens=100)
    metric = read_jsonl(tmp_path / "pretrain/metrics.jsonl")[0]
    assert (metric["step"], metric["loss"], metric["tokens"], metric["mfu"]) == (1, 2.5, 100, None)
    assert {"time", "elapsed"} <= set(metric)
    assert read_jsonl(tmp_path / "pretrain/evals.jsonl") == [
        {"stage": "pretrain", "step": 1, "name": "spelling", "value": 0.5, "low": 0.4, "high": 0.6, "n": 100}
        | {"baseline": 0.1}
    ]
    assert read_jsonl(tmp_path / "pretrain/samples.jsonl")[0]["text"] == 'a "quoted" \u2028 line\nand 火'
    assert read_jsonl(tmp_path / "pretrain/notices.jsonl")[0]["text"] == "three documents were empty"
    assert json.loads((tmp_path / "pretrain/done.json").read_text())["tokens"] == 100


@given(st.integers(0, 200))
def test_a_line_torn_anywhere_is_tolerated_and_repaired(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("torn") / "metrics.jsonl"
    whole = b'{"step": 1, "loss": 2}\n{"step": 2, "loss": 1.5, "text": "\xc3\xa9"}\n'
    path.write_bytes(whole[: min(cut, len(whole))])
    before = read_jsonl(path)
    log = jsonl.JsonlWriter(path)
    log.append({"step": 3})
    log.close()
    assert read_jsonl(path) == [*before, {"step": 3}]
    assert all(json.loads(line) for line in path.read_text().splitlines()), "nothing torn is left"


def test_foreign_lines_are_left_out(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'[1]\nnull\n\xff\xfe\n{"step": 1}\n' + b"[" * 100_000 + b"\n")
    assert read_jsonl(tmp_path / "x.jsonl") == [{"step": 1}]
    assert read_jsonl(tmp_path / "absent.jsonl") == []


def test_rewind_drops_later_lines_only(tmp_path):
    with recorder(tmp_path) as r:
        for step in range(1, 6):
            r.log_metrics(step, loss=step)
            r.log_evaluation(step, "bits_per_byte", step)
            r.log_sample(step, "p", "t")
    with recorder(tmp_path) as r:
        r.rewind(3)
        r.log_metrics(4, loss=40)
    assert [line["loss"] for line in read_jsonl(r.stage_dir / "metrics.jsonl")] == [1, 2, 3, 40]
    assert [line["step"] for line in read_jsonl(r.stage_dir / "evals.jsonl")] == [1, 2, 3]
    assert [line["step"] for line in read_jsonl(r.stage_dir / "samples.jsonl")] == [1, 2, 3]


def test_rewind_while_open_and_elapsed_goes_on(tmp_path):
    with recorder(tmp_path) as r:
        r.log_metrics(1)
        r._opened -= 100
        r.log_metrics(2)
        r.rewind(2)
        assert 100 <= r.elapsed < 110
        r.rewind(1)
        assert r.elapsed < 10
        r.log_metrics(2)
    assert [line["step"] for line in read_jsonl(r.stage_dir / "metrics.jsonl")] == [1, 2]


def test_an_inactive_recorder_writes_nothing(tmp_path):
    with recorder(tmp_path, quiet=False, enabled=False) as r:
        r.log_metrics(1, loss=1.0)
        r.log_evaluation(1, "x", 1.0)
        r.log_notice("hello")
        r.show_progress(1, loss=1.0)
        r.rewind(0)
        r.mark_done()
    assert list(tmp_path.iterdir()) == []


def test_plain_progress_prints_one_line_every_ten_seconds(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    with recorder(tmp_path, quiet=False) as r:
        for step in range(1, 11):
            now[0] = 4.0 * step
            r.show_progress(step, loss=1 / step, tokens_per_second=18_200.0, mfu=0.41, reward=None)
        r.log_notice("[bold]as it is[/bold]")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "pretrain 1/10  loss 1  18.2k tok/s  MFU 41.0 %  reward -  0:04",
        "pretrain 4/10  loss 0.25  18.2k tok/s  MFU 41.0 %  reward -  0:16, 0:24 left",
        "pretrain 7/10  loss 0.1429  18.2k tok/s  MFU 41.0 %  reward -  0:28, 0:12 left",
        "pretrain 10/10  loss 0.1  18.2k tok/s  MFU 41.0 %  reward -  0:40",
        "[bold]as it is[/bold]",
    ]


def test_quiet_is_silent(tmp_path, capsys):
    with recorder(tmp_path) as r:
        r.show_progress(10, loss=1.0)
        r.log_notice("x")
    assert capsys.readouterr() == ("", "")


def test_the_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with recorder(tmp_path, quiet=False) as r:
        r.show_progress(5, loss=2.0)
        r.log_notice("above the line")
        r.show_progress(10, loss=1.0)
    err = capsys.readouterr().err
    assert "10/10" in err and "loss 1" in err and "above the line" in err


def test_numbers_in_words():
    assert [format_duration(7), format_duration(750), format_duration(11109)] == ["0:07", "12:30", "3:05:09"]
    assert [format_count(n) for n in (0, 912, 18_234, 3_712_000, 1.2e11)] == ["0", "912", "18.2k", "3.71M", "120B"]
    assert [format_metric("loss", 2.34567), format_metric("bits_per_byte", 1)] == ["loss 2.346", "bits per byte 1"]


def test_a_sink_without_its_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        recorder(tmp_path, loggers=("wandb",))
    with pytest.raises(UserError, match='did you mean "trackio"'):
        recorder(tmp_path, loggers=("trakio",))


def test_a_sink_receives_numbers(tmp_path, monkeypatch):
    (tmp_path / "trackio.py").write_text(
        "got = []\n"
        "class Run:\n"
        "    def log(self, values, step): got.append((step, values))\n"
        "    def finish(self): got.append('finished')\n"
        "def init(project, name): got.append(name); return Run()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with recorder(tmp_path / "myrun", loggers=("trackio",)) as r:
        r.log_metrics(1, loss=2.0, record_step="text")
        r.log_evaluation(1, "spelling", 0.5)
    import trackio

    assert trackio.got == ["myrun-pretrain", (1, {"loss": 2.0}), (1, {"eval/spelling": 0.5}), "finished"]
    monkeypatch.delitem(sys.modules, "trackio")


def test_tensorboard_shows_what_was_recorded(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with recorder(tmp_path / "myrun", loggers=("tensorboard",)) as r:
        for step in (1, 2):
            r.log_metrics(step, loss=3.0 - step)
        r.log_evaluation(2, "spelling", 0.5)
    events = EventAccumulator(str(tmp_path / "myrun" / "pretrain" / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 2.0), (2, 1.0)]
    assert [(e.step, e.value) for e in events.Scalars("eval/spelling")] == [(2, 0.5)]


def test_a_full_disk_is_one_line_and_the_lines_before_stay(tmp_path):
    """A file size limit stands in for the full disk: the write really fails, half-way through a line."""
    script = """if True:
        import resource, sys
        from fledgling.config import UserError
        from fledgling.record import Recorder, write_json
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        r = Recorder(sys.argv[1], "sft", 5, quiet=True)
        try:
            for step in range(100):
                r.metric(step, loss=1.0)
        except UserError as error:
            print(error)
        try:
            write_json(sys.argv[1] + "/done.json", "x" * 2000)
        except UserError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert "metrics.jsonl" in first and "needed" in first and "free" in first
    assert "done.json" in second
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) > 5
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl"}
    with Recorder(tmp_path, "sft", 5, quiet=True) as r:
        r.log_metrics(7)
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_other_write_errors_name_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: .*run\.out"):
        Recorder(tmp_path / "file" / "pretrain", "pretrain", 1, quiet=True).log_metrics(1)
    error = make_write_error(tmp_path / "no" / "where", OSError(errno.ENOSPC, "x"), 3_100_000)
    assert "3.1 MB needed" in str(error) and "\n" not in str(error)


def test_write_json_replaces_in_one_rename(tmp_path):
    write_json(tmp_path / "a" / "x.json", {"v": 1, "inf": math.inf})
    assert json.loads((tmp_path / "a/x.json").read_text()) == {"v": 1, "inf": None}
    assert os.listdir(tmp_path / "a") == ["x.json"]


def test_environment_says_where_without_torch():
    script = "import sys, json; from fledgling.record import collect_environment; e = collect_environment();"
    script += "assert 'torch' not in sys.modules and 'rich' not in sys.modules; print(json.dumps(e))"
    found = json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    assert found["python"].startswith("3.") and found["cores"] >= 1 and found["memory"] > 1e8
    assert set(found) == set(collect_environment())
