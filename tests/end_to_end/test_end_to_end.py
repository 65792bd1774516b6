"""End to end: one command through all stages, again, chat, evaluation, report."""

import json
import subprocess
import sys

import pytest
import torch

from fledgling.cli import main
from fledgling.config import DEFAULT_STAGES
from fledgling.record import read_jsonl
from fledgling.runtime.device import should_compile
from tests.all_stages import make_all_stages_recipe
from tests.invariants.test_figures import check_every_recorded_name_is_described


def fledgling(*arguments, timeout=400):
    command = [sys.executable, "-m", "fledgling", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


@pytest.fixture
def run_here(capsys):
    """A command line in this process, where a new one takes two seconds to import torch: its exit code and texts."""

    def run(*arguments):
        capsys.readouterr()
        code = main([*map(str, arguments)])
        return code, *capsys.readouterr()

    return run


@pytest.mark.end_to_end
@pytest.mark.timeout(900)
def test_one_command_makes_a_chat_model_from_text(tmp_path, run_here):
    make_all_stages_recipe(tmp_path)
    recipe, out = tmp_path / "all_stages.toml", tmp_path / "run"
    first = fledgling("speedrun", recipe)
    assert first.returncode == 0, first.stderr[-2000:]
    assert "arithmetic" in first.stdout and "rl" in first.stdout
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")

    check_every_recorded_name_is_described(out)
    code, _, progress = run_here("speedrun", recipe)
    assert code == 0 and "done" in progress

    def read(*arguments):
        """Returns the JSON that a command prints."""
        code, printed, _ = run_here(*arguments, "--json")
        assert code == 0
        return json.loads(printed)

    evals = read("report", out)["evals"]
    assert {e["stage"] for e in evals} == set(DEFAULT_STAGES)
    assert {"bits_per_byte", "arithmetic", "arithmetic_test", "identity_test"} <= {e["name"] for e in evals}

    code, _, message = run_here("chat", out, "-p", "Who are you?", "--max-new-tokens", "8")
    assert code == 0, message
    assert {"n", "low", "high", "baseline"} <= set(read("eval", "chat", out, "--questions", "2")[0])
    assert 0 < read("eval", "bpb", out, tmp_path / "text")[0]["value"] < 20


@pytest.mark.end_to_end
@pytest.mark.skipif(not should_compile("auto", torch.device("cpu")), reason="torch.compile needs a C++ compiler here")
def test_a_compiled_run_has_the_losses_of_an_eager_one(tmp_path):
    """Compiles as runs do by default: blocks, loss, and the step whose memory is measured."""
    make_all_stages_recipe(tmp_path)
    losses = {}
    for compiled in ("on", "off"):
        out = tmp_path / compiled
        settings = (f"--set=run.out={out}", f"--set=run.compile={compiled}")
        done = fledgling("train", "pretrain", tmp_path / "all_stages.toml", *settings, timeout=400)
        assert done.returncode == 0, done.stderr[-2000:]
        losses[compiled] = [line["loss"] for line in read_jsonl(out / "pretrain" / "metrics.jsonl")]
    assert len(losses["on"]) == 4 and losses["on"] == pytest.approx(losses["off"], rel=1e-4)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("chat", "nowhere", "-p", "hello"), "nowhere does not exist"),
        (("train", "sft", "quickstart", "--set", "run.out=/nonexistent/x"), "/nonexistent"),
        (("train", "pretrain", "quickstart", "--set", "model.dept=3"), "did you mean"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(arguments, words, run_here):
    code, _, message = run_here(*arguments)
    assert code == 1
    assert words in message and "Traceback" not in message
    assert len(message.strip().splitlines()) == 1


def test_a_process_of_its_own_says_no_more_about_a_mistake():
    result = fledgling("train", "sft", "quickstart", "--set", "run.out=/nonexistent/x")
    assert result.returncode == 1
    assert result.stderr.startswith("error") and len(result.stderr.strip().splitlines()) == 1
