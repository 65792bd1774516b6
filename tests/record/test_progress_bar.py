"""The progress line: plain lines every ten seconds, a bar on a terminal, short numbers."""

from fledgling.record import Recorder, progress_bar
from fledgling.record.progress_bar import format_count, format_duration, format_metric


def test_plain_progress_prints_one_line_every_ten_seconds(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    with Recorder(tmp_path, "pretrain", 10) as recorder:
        for step in range(1, 11):
            now[0] = 4.0 * step
            recorder.show_progress(step, loss=1 / step, tokens_per_second=18_200.0, mfu=0.41, reward=None)
        recorder.log_notice("[bold]as it is[/bold]")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "pretrain 1/10  loss 1  18.2k tok/s  MFU 41.0 %  reward -  0:04",
        "pretrain 4/10  loss 0.25  18.2k tok/s  MFU 41.0 %  reward -  0:16, 0:24 left",
        "pretrain 7/10  loss 0.1429  18.2k tok/s  MFU 41.0 %  reward -  0:28, 0:12 left",
        "pretrain 10/10  loss 0.1  18.2k tok/s  MFU 41.0 %  reward -  0:40",
        "[bold]as it is[/bold]",
    ]


def test_the_time_left_after_a_resume_is_of_this_session_and_pauses_change_it_little(tmp_path, capsys, monkeypatch):
    """Steps 1 to 400 took ten seconds each; those of this session take two, except a minute of evaluation."""
    now = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    with Recorder(tmp_path, "pretrain", 1000) as recorder:
        for step in range(1, 401):
            now[0] = 10.0 * step
            recorder.log_metrics(step, loss=1.0)
    capsys.readouterr()
    now[0] = 1e6
    with Recorder(tmp_path, "pretrain", 1000) as recorder:
        recorder.rewind(400)
        now[0] += 50.0  # the first step compiles
        for step in range(401, 461):
            now[0] += 2.0 + 60.0 * (step == 430)
            recorder.show_progress(step, loss=1.0)
    lines = capsys.readouterr().err.splitlines()
    assert "401/1000  loss 1  1:07:32" in lines[0] and "left" not in lines[0], "the work before counts, the pause not"
    left = {int(line.split("/")[0].split()[1]): line.split(", ")[1] for line in lines[1:]}
    assert all(text == f"{progress_bar.format_duration(2 * (1000 - step))} left" for step, text in left.items()), left


def test_a_terminal_shows_a_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Recorder(tmp_path, "pretrain", 10) as recorder:
        recorder.show_progress(5, loss=2.0)
        recorder.log_notice("above the line")
        recorder.show_progress(10, loss=1.0)
    err = capsys.readouterr().err
    assert "10/10" in err and "loss 1" in err and "above the line" in err


def test_numbers_are_formatted_short():
    assert [format_duration(7), format_duration(750), format_duration(11109)] == ["0:07", "12:30", "3:05:09"]
    assert [format_count(n) for n in (0, 912, 18_234, 3_712_000, 1.2e11)] == ["0", "912", "18.2k", "3.71M", "120B"]
    assert [format_metric("loss", 2.34567), format_metric("bits_per_byte", 1)] == ["loss 2.346", "bits per byte 1"]


def test_work_of_unknown_length_shows_no_time_left(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    bar = progress_bar.ProgressBar("verify")
    for step in range(1, 5):
        now[0] = 8.0 * step
        bar.update(step, None, {}, now[0])
    assert capsys.readouterr().err.splitlines() == ["verify 1    0:08", "verify 3    0:24"]
