"""`fledgling watch` as a process: it serves the page until a signal, and rejects what it cannot watch."""

import json
import signal
import subprocess
import sys
import urllib.request

import pytest

from fledgling.cli import main
from tests.report.synthetic_run import make_run


def test_the_page_is_served_until_a_signal_and_no_torch_is_imported(tmp_path):
    make_run(tmp_path / "runs" / "quickstart", stages=("pretrain",), scale=0.02)
    script = (
        "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules));"
        "from fledgling.cli import main; sys.exit(main(['watch', 'runs/quickstart', '--port', '0']))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/api/runs", timeout=30) as response:
            assert json.load(response)["runs"][0]["stages"][0]["step"] == 10
    finally:
        process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert output.strip() == "False"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "got 0 runs"),
        (["nowhere", "--port", "70000"], "expected 0 to 65535"),
        (["nowhere", "--host", "0.0.0.0"], "reachable from outside"),
        (["nowhere", "--host", "0.0.0.0", "--api-key", "short"], "at least 8"),
        ([__file__], "is a file"),
    ],
)
def test_what_cannot_be_watched_is_one_line(words, message, capsys, monkeypatch):
    monkeypatch.delenv("FLEDGLING_API_KEY", raising=False)
    assert main(["watch", *words]) == 1
    assert message in capsys.readouterr().err
