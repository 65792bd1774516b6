"""`eval core` and `eval compare` from the command line: results, saved tasks, and errors."""

import json
from pathlib import Path

import pytest

from fledgling.cli import main
from fledgling.export import write_hf
from fledgling.record import checkpoint
from fledgling.text.tokenizer import Tokenizer
from tests.evals.random_model import make_random_model
from tests.made_up_core import write_core_bundle


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Few merges: almost every token is a letter, alone or after a space."""
    return Tokenizer.train(["the quick brown fox jumps over the lazy dog again and again " * 9], vocab_size=330)


@pytest.fixture
def saved(tokenizer, tmp_path) -> Path:
    """A checkpoint in a run's pretraining."""
    file = tokenizer.save(tmp_path / "tokenizer.json")
    model = make_random_model(tokenizer.vocab_size)
    state = {"stage": "pretrain", "step": 3, "model": model.config.to_dict()}
    stage = tmp_path / "run" / "pretrain"
    path = checkpoint.save_checkpoint(
        stage / "checkpoints", 3, {"model": model.state_dict()}, state, {"tokenizer.json": file}
    )
    (stage / "metrics.jsonl").write_text("{}\n")
    return path


def test_the_command_scores_resumes_records_and_replays(saved, tmp_path, capsys):
    root = write_core_bundle(tmp_path)
    command = ["eval", "core", str(saved), "--data-dir", str(root), "--device", "cpu", "--dtype", "float32"]
    log = tmp_path / "log.jsonl"
    assert main([*command, "--log", str(log), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["tasks"]) == 7 and printed["core"]["n"] == 28
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == printed, "read from the file of finished tasks"
    assert (saved.parent.parent / "exams" / saved.name / "core.jsonl").is_file()
    evals = [json.loads(line) for line in (saved.parent.parent / "evals.jsonl").read_text().splitlines()]
    assert {line["name"] for line in evals} >= {"core", "core_schema"} and {line["step"] for line in evals} == {3}
    assert main(["eval", "core", "--replay", str(log), "--json"]) == 0
    assert [t["accuracy"] for t in json.loads(capsys.readouterr().out)["tasks"]] == [
        t["accuracy"] for t in printed["tasks"]
    ]
    assert main(["eval", "compare", str(log), str(log), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "core"
    assert main([*command, "--tasks", "schema,letters", "--max-per-task", "2"]) == 0
    out = capsys.readouterr().out
    assert "schema" in out and "mean of 2" in out and "CORE" not in out


def test_an_untrained_model_is_scored_and_not_recorded(saved, tmp_path, capsys):
    """Random weights that distinguish choices: in a fresh model, whose head is zero, all are equally likely."""
    log = tmp_path / "log.jsonl"
    command = ["eval", "core", str(saved), "--data-dir", str(write_core_bundle(tmp_path)), "--device", "cpu", "--json"]
    assert main([*command, "--untrained", "--log", str(log)]) == 0
    untrained = json.loads(capsys.readouterr().out)
    assert untrained["untrained"] and untrained["core"]["n"] == 28
    items = [line for line in map(json.loads, log.read_text().splitlines()) if len(line.get("logprobs", ())) > 1]
    assert items and all(len(set(item["logprobs"])) > 1 for item in items)
    assert not (saved.parent.parent / "evals.jsonl").exists()
    assert main(command) == 0, "the trained model does not reuse the tasks of the untrained one"
    assert json.loads(capsys.readouterr().out)["tasks"] != untrained["tasks"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-per-task", "0"], "--max-per-task is 0"),
        (["--tasks", "schemer"], 'no CORE task "schemer"'),
        (["--data-dir", "/nowhere"], "fledgling data fetch core"),
    ],
)
def test_errors_are_one_line(saved, tmp_path, capsys, options, message):
    root = [] if "--data-dir" in options else ["--data-dir", str(write_core_bundle(tmp_path))]
    assert main(["eval", "core", str(saved), "--device", "cpu", *root, *options]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1] and error[-1].startswith("error: ")


def test_a_hugging_face_directory_scores_as_the_checkpoint_does(saved, tokenizer, tmp_path, capsys):
    model = make_random_model(tokenizer.vocab_size)
    directory = write_hf.write_hf(tmp_path / "hf", model.config, model.state_dict(), tokenizer, "")
    options = ["--data-dir", str(write_core_bundle(tmp_path)), "--device", "cpu", "--dtype", "float32", "--json"]
    printed = []
    for path in (saved, directory):
        assert main(["eval", "core", str(path), *options]) == 0
        printed.append([(t["label"], t["correct"]) for t in json.loads(capsys.readouterr().out)["tasks"]])
    assert printed[0] == printed[1] and directory.with_name("hf.core.jsonl").is_file()
