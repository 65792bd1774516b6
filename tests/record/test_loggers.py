"""Optional loggers: a missing package is one error line, and numbers arrive."""

import sys

import pytest

from fledgling.config import UserError
from fledgling.record import Recorder


def test_a_logger_without_its_package_is_one_error_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        Recorder(tmp_path, "pretrain", 10, quiet=True, loggers=("wandb",))
    with pytest.raises(UserError, match='did you mean "trackio"'):
        Recorder(tmp_path, "pretrain", 10, quiet=True, loggers=("trakio",))


def test_a_logger_receives_numbers(tmp_path, monkeypatch):
    (tmp_path / "trackio.py").write_text(
        "got = []\n"
        "class Run:\n"
        "    def log(self, values, step): got.append((step, values))\n"
        "    def finish(self): got.append('finished')\n"
        "def init(project, name): got.append(name); return Run()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with Recorder(tmp_path / "myrun" / "pretrain", "pretrain", 10, quiet=True, loggers=("trackio",)) as recorder:
        recorder.log_metrics(1, loss=2.0, note="text")
        recorder.log_evaluation(1, "spelling", 0.5)
    import trackio

    assert trackio.got == ["myrun-pretrain", (1, {"loss": 2.0}), (1, {"eval/spelling": 0.5}), "finished"]
    monkeypatch.delitem(sys.modules, "trackio")


def test_tensorboard_receives_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Recorder(tmp_path / "pretrain", "pretrain", 10, quiet=True, loggers=("tensorboard",)) as recorder:
        for step in (1, 2):
            recorder.log_metrics(step, loss=3.0 - step)
        recorder.log_evaluation(2, "spelling", 0.5)
    events = EventAccumulator(str(tmp_path / "pretrain" / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 2.0), (2, 1.0)]
    assert [(e.step, e.value) for e in events.Scalars("eval/spelling")] == [(2, 0.5)]
