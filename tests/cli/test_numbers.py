"""Every option that takes a number with a fraction rejects what is none, in one line that names it and the range."""

import typing

import pytest

from fledgling.cli import main
from tests.command_tree import iterate_commands

# Command and what it needs, before the option and its value. Each rejects nan, -1 and what is too large.
CASES = {
    "plan --minutes": "",
    "plan --hours": "",
    "plan --usd": "--gpu h100",
    "plan --price": "--gpu h100 --usd 50",
    "plan --mfu": "",
    "plan --peak": "--gpu h100",
    "plan --bandwidth": "--gpu h100",
    "plan --memory": "--gpu h100",
    "plan devices --hours": "--gpu h100",
    "plan devices --mfu": "--gpu h100",
    "plan devices --peak": "--memory 1",
    "plan devices --bandwidth": "--gpu h100",
    "plan devices --memory": "--peak 1",
    "speedrun --minutes": "",
    "speedrun --hours": "",
    "speedrun --usd": "--gpu h100",
    "speedrun --price": "--gpu h100 --usd 5",
    "bench gpu --minutes": "--out {folder}/out --tiny",
    "bench learn --minutes": "quickstart d12-1gpu --out {folder}/race",
    "verify --seconds": "{folder}",
    "scaling predict --budget": "",
    "scaling run --budgets": "--out {folder}/sweep",
    "scaling predict --bytes-per-token": "1e20",
    "scaling recover --noise": "",
    "distill --temperature": "no-run identity {folder}/answers.jsonl",
    "eval passk --temperature": "no-run",
    "scaling inference --temperature": "no-run",
    "export hf --shard-gb": "no-run {folder}/out",
}
AFTER_LOADING = {  # rejected as fields of a request or of a sweep's check, once a checkpoint or a sweep is loaded
    "chat --temperature",
    "chat --top-p",
    "chat --min-p",
    "scaling check --times",
}
TOO_LARGE = {
    "verify --seconds": "inf",
    "bench learn --minutes": "inf",
    **dict.fromkeys(["distill --temperature", "eval passk --temperature", "scaling inference --temperature"], "inf"),
}


def number_options() -> set[str]:
    """The options of all commands whose value is a float, each after its command."""
    return {
        " ".join((*words, f"--{argument.names[0].lower().lstrip('-')}"))
        for words, arguments in iterate_commands()
        for argument in arguments
        if float in (argument.hint, *typing.get_args(argument.hint))
    }


def test_every_number_of_every_command_is_listed_here():
    assert number_options() == {*CASES, *AFTER_LOADING}


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_amount_is_rejected_in_one_line(case, tmp_path, capfd):
    command, option = case.rsplit(" ", 1)
    for value in ("nan", "-1", TOO_LARGE.get(case, "1e300")):
        words = [*command.split(), *CASES[case].format(folder=tmp_path).split()]
        words += [value] if option == "--budget" else [option, value]
        assert main(words) == 1, words
        error = capfd.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and "expected" in error, error
        assert option[2:] in error and (value in error or f"{float(value):g}" in error), error


@pytest.mark.parametrize("words", ["plan --depth 1.5", "plan --depth 12 --gpus 1.5", "plan devices --context 2.0"])
def test_a_whole_number_is_not_rounded(words, capsys):
    assert main(words.split()) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"got {words.split()[-1]}; expected a whole number" in err
