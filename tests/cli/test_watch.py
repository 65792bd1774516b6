"""`fledgling watch` as a process: it serves the page until a signal, and rejects what it cannot watch."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from fledgling.cli import main
from fledgling.cli.watch import ACCOMPANY, suggest_run, watching
from fledgling.config.run_marks import require_watchable
from tests.report.synthetic_run import make_run
from tests.waits import WAIT_SECONDS


def test_the_page_is_served_until_a_signal_and_no_torch_is_imported(tmp_path):
    make_run(tmp_path / "runs" / "quickstart", stages=("pretrain",), scale=0.02)
    script = (
        "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules));"
        "from fledgling.cli import main;"
        "sys.exit(main(['watch', *['runs/quickstart'] * 2, '--port', '0', '--allow-host', 'Box']))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        for host in ("127.0.0.1", "box:8008"):
            request = urllib.request.Request(f"{url}/api/runs", headers={"Host": host})
            with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as response:
                (run,) = json.load(response)["runs"]
            assert run["stages"][0]["step"] == 10
    finally:
        process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=WAIT_SECONDS)
    assert output.strip() == "False"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "got 0 runs"),
        (["nowhere", "--port", "70000"], "expected 0 to 65535"),
        (["nowhere", "--allow-host", "http://box"], "expected a host's name without scheme and port"),
        (["nowhere", "--host", "0.0.0.0"], "reachable from outside"),
        (["nowhere", "--host", "0.0.0.0", "--api-key", "short"], "at least 8"),
        ([__file__], "is a file"),
        (["."], ". is no run directory; expected one, such as runs/quickstart"),
        (["runs"], "runs is no run directory; expected one"),
        (["runs/quickstart/pretrain"], "is no run directory, but a part of the run runs/quickstart; expected one"),
        (["runs/quickstart", "runs/quickstart/data"], "is no run directory, but a part of the run runs/quickstart"),
    ],
)
def test_what_cannot_be_watched_is_one_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FLEDGLING_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fledgling.serve.server.Server.run", lambda *_, **__: None)  # what is served ends at once
    for file in ("recipe.toml", "pretrain/metrics.jsonl", "data/text-train-0/manifest.json"):
        path = tmp_path / "runs/quickstart" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert main(["watch", *words]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_page_ends_with_the_run_that_was_killed_and_frees_its_port(tmp_path):
    words = [
        sys.executable,
        "-c",
        ACCOMPANY,
        str(os.getpid() + 1),
        str(tmp_path),
        "0",
    ]  # not the parent, as after kill -9
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    assert subprocess.run(words, **silent, timeout=WAIT_SECONDS).returncode in (0, -15)


def test_a_port_in_use_is_named_with_its_option_and_only_a_page_that_was_shown_is_closed(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken, watching(str(tmp_path), taken.getsockname()[1], True):
        pass
    error = capsys.readouterr().err
    assert "no page is shown" in error and "try --watch-port 0" in error and "closed" not in error
    with watching(str(tmp_path / "refused"), 0, True):
        pass
    assert capsys.readouterr().err == ""
    with watching(str(make_run(tmp_path / "run", stages=("pretrain",), scale=0.02)), 0, True):
        pass
    assert f"the page is closed; fledgling watch {tmp_path / 'run'} shows it again" in capsys.readouterr().err


def test_the_name_of_a_recipe_has_a_hint_at_its_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert suggest_run(Path("quickstart")) == "; do you mean runs/quickstart?" and suggest_run(Path("mine")) == ""
    make_run(tmp_path / "runs" / "mine", stages=("pretrain",), scale=0.02)
    assert suggest_run(Path("mine")) == "; do you mean runs/mine?"


def test_a_run_need_not_have_started_and_a_line_says_so(tmp_path):
    """`speedrun --watch` opens the page while it starts; the line shows a mistyped name."""
    folder = tmp_path / "new"
    assert require_watchable(folder).endswith("new does not exist: the page shows nothing until a run starts there")
    folder.mkdir()
    assert "is empty" in require_watchable(folder)
    for name in ("lock", "recipe.toml", "sft/metrics.jsonl"):
        file = tmp_path / name.replace("/", "-") / name
        file.parent.mkdir(parents=True)
        file.touch()
        assert require_watchable(tmp_path / name.replace("/", "-")) == ""
