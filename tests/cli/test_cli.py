"""The command: results on stdout, one line on stderr for a mistake, and the exit codes."""

import json
import runpy
import subprocess
import sys
import warnings

import pytest
import torch

import benchmarks.commands  # noqa: F401  # registers the experiments
from benchmarks import harness
from fledgling import cli
from fledgling.cli import COMMANDS, RENAMED_COMMANDS, RENAMED_OPTIONS, main
from fledgling.runtime.machine_checks import measure_matmul_speed
from tests.command_tree import iterate_commands
from tests.waits import WAIT_SECONDS


def run(*words: str) -> subprocess.CompletedProcess:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "fledgling", *words], capture_output=True, text=True, timeout=WAIT_SECONDS
    )


def test_the_cli_is_run_as_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fledgling", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("fledgling.cli", run_name="__main__")
    assert ended.value.code == 0 and capsys.readouterr().out.strip()


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_explains_itself(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert "Usage:" in capsys.readouterr().out


def test_help_lists_every_verb(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f" {verb} " in out for verb in COMMANDS)


def test_the_line_of_a_verb_names_all_its_commands():
    subcommands: dict[str, set[str]] = {verb: set() for verb in COMMANDS}
    for (verb, *rest), _ in iterate_commands():
        subcommands[verb] |= set(rest[:1])
    for verb, (_, line) in COMMANDS.items():
        named = set(line.rpartition(": ")[2].rstrip(".").split(", "))
        assert not subcommands[verb] or named == subcommands[verb], verb


@pytest.mark.parametrize(
    ("words", "code", "reported"),
    [
        (["confg"], 2, 'did you mean "config"'),
        (["push", "exported", "me/bird"], 2, 'did you mean "export push"'),
        (["--nope"], 2, '"--nope"'),
        (["config", "shw"], 2, "show"),
        (["config", "show", "--sett", "a"], 2, "--set"),
        (["plan", "--depth", "deep"], 2, "deep"),
        (["plan", "nope"], 1, 'no recipe "nope"'),
        (["plan", "--gpu", "h10"], 1, 'did you mean "h100"'),
        (["config", "show", "--set", "model.dept=3"], 1, 'did you mean "depth"'),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(words, code, reported, capsys):
    assert main(words) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and reported in err
    assert err.count("\n") == 1


def test_plan_prints_text_and_json(capsys):
    published = ["plan", "--depth", "20", "--gpus", "8", "--gpu", "h100", "--set", "model.preset=nanochat-2025"]
    assert main(published) == 0
    assert "560,988,160" in capsys.readouterr().out
    assert main([*published, "--vocab-size", "65536", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["parameters"]["total"] == 560_988_160
    assert result["horizon"]["steps"] == 21_400


def test_a_plan_of_the_default_model_counts_tokens_without_value_embeddings(capsys):
    assert main(["plan", "--depth", "20"]) == 0
    assert "(20 per parameter without value embeddings)" in capsys.readouterr().out
    assert main(["plan", "--depth", "20", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["parameters"]["total"], result["horizon"]["steps"]) == (1_399_852_234, 21_400)
    assert result["horizon"]["tokens_per_parameter"] == pytest.approx(20, rel=1e-3)


def test_a_depth_alone_pins_nothing_else(capsys):
    assert main(["plan", "--depth", "12", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["model"]["width"], result["model"]["heads"], result["recipe"]) == (768, 6, "d12")
    assert result["horizon"]["tokens_per_parameter"] == pytest.approx(20, rel=1e-3)


def test_config_show_is_a_recipe(capsys, tmp_path):
    assert main(["config", "show", "d12-1gpu", "--set", "seed=7"]) == 0
    (tmp_path / "mine.toml").write_text(capsys.readouterr().out)
    assert main(["config", "show", str(tmp_path / "mine.toml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 7


def test_doctor_finds_something(monkeypatch, capsys):
    monkeypatch.setattr("fledgling.runtime.device.measure_peak_flops", lambda device, dtype: 1e9)  # a second saved
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {"python", "torch", "disk", "processor"} <= {finding["name"] for finding in findings}
    assert all(finding["ok"] or finding["advice"] for finding in findings)


@pytest.mark.parametrize(
    ("float32", "chosen", "warns"), [(181e9, "bfloat16", True), (90e9, "bfloat16", False), (181e9, "float32", False)]
)
def test_doctor_warns_where_training_would_take_the_slower_product(monkeypatch, float32, chosen, warns):
    speeds = {torch.float32: float32, torch.bfloat16: 84e9}
    monkeypatch.setattr("fledgling.runtime.device.measure_peak_flops", lambda device, dtype: speeds[dtype])
    monkeypatch.setattr("fledgling.runtime.device.choose_training_dtype", lambda device: getattr(torch, chosen))
    plain, bfloat16 = measure_matmul_speed(torch)
    assert plain.ok and bfloat16.ok is not warns
    assert ("float32 multiplies 2.2 times as fast here" in bfloat16.advice) is warns


def test_words_that_nothing_takes_are_named_with_what_to_do(capsys):
    assert main(["plan", "quickstart", "--set", "seed=2", "run.out=runs/a"]) == 2
    line = "no argument or option takes run.out=runs/a: repeat the option, --set run.out=runs/a"
    assert capsys.readouterr().err == f"error: {line} (see fledgling plan --help)\n"
    assert main(["doctor", "now"]) == 2 and "no argument or option takes now (see" in capsys.readouterr().err


def test_an_interrupt_is_130(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fledgling.cli.build_app", interrupted)
    assert main(["plan"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_a_reader_that_leaves_causes_no_traceback():
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import time, sys; time.sleep(.3); from fledgling.cli import main; sys.exit(main(['plan']))",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    writer.stdout.close()
    assert writer.stderr.read() == b""
    assert writer.wait(WAIT_SECONDS) == 141


def test_python_dash_m_is_the_same_command():
    result = run("config", "list")
    assert result.returncode == 0 and "quickstart" in result.stdout
    assert run("plan", "nope").returncode == 1


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [(command, old, new) for command, options in RENAMED_OPTIONS.items() for old, new in options.items()],
)
def test_an_old_option_is_rejected_with_its_new_name(command, old, new, capsys):
    assert main([*command.split(), old, "3", "nothing", "nowhere"]) == 2
    expected = f"error: option {old} was renamed to {new} (see fledgling {command} --help)\n"
    assert capsys.readouterr().err == expected
    main([*command.split(), "--help"])
    assert new in capsys.readouterr().out


def test_an_unknown_option_points_to_the_help_of_its_command(capsys):
    assert main(["bench", "train", "--nonsense"]) == 2
    assert capsys.readouterr().err.endswith("(see fledgling bench train --help)\n")


def test_a_warning_of_the_package_is_one_line(capsys):
    namespace = {"warn": warnings.warn}
    own = compile("warn('skipped: a checkpoint', stacklevel=1)", cli.__file__, "exec")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with cli.show_own_warnings():
            exec(own, namespace)
        assert capsys.readouterr().err == "warning: skipped: a checkpoint\n"


@pytest.mark.parametrize(("old", "new"), RENAMED_COMMANDS.items())
def test_an_old_command_names_its_new_one_which_exists(old, new, capsys):
    assert main([*old.split(), "--json"]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f'error: command "{old}" was renamed to `{new}`') and line.count("\n") == 1
    known = {"fledgling": COMMANDS, "benchmarks": set(harness.app)}
    program, name = new.split()[-2:]
    assert name in known[program]


@pytest.mark.parametrize("verb", cli.PARTS)
def test_a_part_that_is_suggested_exists(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f" {name} " in shown for name in cli.PARTS[verb])
