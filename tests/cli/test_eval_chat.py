"""`eval chat` and `eval passk` from the command line: results, saved answers, help, and errors."""

import json

import pytest

from fledgling.cli import main
from fledgling.evals import chat
from fledgling.infer.engine import Engine
from fledgling.record import read_jsonl
from fledgling.report.summary import summarize_run
from fledgling.tasks import ENVIRONMENT_PREFIX, GENERATED_TASKS, PUBLIC_TASKS
from fledgling.tasks.environments import ENVIRONMENTS
from tests.made_up_sets import make_choice_rows, write_rows


def test_chatcore_is_answered_saved_recorded_and_not_answered_again(trained_run, run_command, tmp_path):
    out, data = trained_run
    words = ("eval", "chat", out, "--tasks", "chatcore", "--questions", 4, "--data-dir", data, "--json")
    code, out_text, err = run_command(*words, "--log", tmp_path / "log.jsonl")
    measurements = {m["name"]: m for m in json.loads(out_text)}
    assert code == 0 and set(measurements) == {"arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval", "chatcore"}
    assert measurements["mmlu"]["n"] == 4 and measurements["mmlu"]["chance"] == 0.25 and "gsm8k 4/4" in err
    assert all(m["low"] <= m["value"] <= m["high"] for m in measurements.values())
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(log) == 20 and {"prompt", "expected", "answer", "score"} <= set(log[0])
    evals = {one["name"]: one["value"] for one in summarize_run(out)["evals"]}
    assert evals["chatcore"] == measurements["chatcore"]["value"] and evals["gsm8k"] == measurements["gsm8k"]["value"]
    [saved] = (out / "pretrain" / "exams").rglob("mmlu.jsonl")
    key, *answers = read_jsonl(saved)
    assert [one["index"] for one in answers] == [0, 1, 2, 3]
    saved.write_text("".join(json.dumps(line) + "\n" for line in [key, *({**one, "score": 1.0} for one in answers)]))
    again = {m["name"]: m["value"] for m in json.loads(run_command(*words)[1])}
    assert again["mmlu"] == 1.0 and again["gsm8k"] == measurements["gsm8k"]["value"]
    fresh = {m["name"]: m["value"] for m in json.loads(run_command(*words, "--fresh")[1])}
    assert fresh["mmlu"] == measurements["mmlu"]["value"]


def test_fewer_questions_do_not_replace_more_and_out_leaves_the_run_alone(trained_run, run_command, tmp_path):
    out, data = trained_run
    common = ("eval", "chat", out, "--tasks", "arc_easy", "--data-dir", data)
    run_command(*common, "--questions", 9)
    before = (out / "pretrain" / "evals.jsonl").read_bytes()
    run_command(*common, "--questions", 3)
    run_command(*common, "--questions", 12, "--out", tmp_path / "elsewhere")
    assert (out / "pretrain" / "evals.jsonl").read_bytes() == before
    assert (tmp_path / "elsewhere" / "arc_easy.jsonl").is_file()
    lines = [line for line in read_jsonl(out / "pretrain" / "evals.jsonl") if line["name"] == "arc_easy"]
    assert [line["n"] for line in lines] == [9]


def test_of_a_stopped_exam_only_incomplete_groups_are_asked_again(trained_run, run_command, tmp_path, monkeypatch):
    out, data = trained_run
    monkeypatch.setattr(chat, "GROUP_SIZE", {"cpu": 4})
    words = (
        "eval",
        "chat",
        out,
        "--tasks",
        "gsm8k",
        "--questions",
        11,
        "--data-dir",
        data,
        "--device",
        "cpu",
        "--json",
    )
    _, complete, _ = run_command(*words)
    [saved] = (out / "pretrain" / "exams").rglob("gsm8k.jsonl")
    lines = saved.read_text().splitlines(keepends=True)
    assert len(lines) == 12
    saved.write_text("".join(lines[:7]) + lines[7][:20])  # a group of four, two of the next, and a torn line
    prompts, generate = [], Engine.generate
    monkeypatch.setattr(Engine, "generate", lambda self, p, *a, **k: prompts.extend(p) or generate(self, p, *a, **k))
    _, again, err = run_command(*words)
    assert again == complete and len(prompts) == 7 and "gsm8k: read 6 saved answers" in err
    answers = {line["index"]: line for line in map(json.loads, saved.read_text().splitlines()[1:])}
    assert answers == {line["index"]: line for line in map(json.loads, lines[1:])}
    prompts.clear()
    assert run_command(*words)[1] == complete and not prompts


def test_a_stopped_pass_at_k_resumes(trained_run, run_command):
    out, data = trained_run
    common = ("eval", "passk", out, "--task", "gsm8k", "--samples", 3, "--k", "1,3", "--data-dir", data, "--json")
    code, out_text, _ = run_command(*common, "--questions", 4)
    measurements = json.loads(out_text)
    assert code == 0 and [(m["name"], m["n"]) for m in measurements] == [("gsm8k_pass@1", 4), ("gsm8k_pass@3", 4)]
    [saved] = (out / "pretrain" / "exams").rglob("gsm8k-passk-*.jsonl")
    lines = saved.read_text().splitlines(keepends=True)
    assert len(lines) == 4 and len(json.loads(lines[0])["answers"]) == 3
    saved.write_text("".join(lines[:2]))
    assert json.loads(run_command(*common, "--questions", 4)[1]) == measurements
    assert saved.read_text().splitlines(keepends=True) == lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tasks", "arc_esy"), 'did you mean "arc_easy"'),
        (("--tasks", "gsm8k", "--data-dir", "/nowhere"), "fledgling data fetch gsm8k"),
        (("--questions", "0"), "expected at least 1"),
        (("--tasks", "questions:/nowhere.jsonl"), "cannot read /nowhere.jsonl: no such file"),
    ],
)
def test_errors_are_one_line(trained_run, run_command, words, message):
    code, out_text, err = run_command("eval", "chat", trained_run[0], *words)
    assert code == 1 and out_text == "" and message in err and err.count("\n") == 1


@pytest.mark.parametrize("command", ["chat", "passk"])
def test_help_lists_the_tasks(run_command, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = run_command("eval", command, "--help")
    sets = (*PUBLIC_TASKS, "chatcore") if command == "chat" else ("gsm8k", "humaneval")
    environments = [f"{ENVIRONMENT_PREFIX}{name}" for name in (*ENVIRONMENTS, "path.py:Class")]
    listed = out.replace("\u2502", " ").replace(",", " ").replace(";", " ").split()
    assert code == 0
    assert {*GENERATED_TASKS, *sets, *environments, "questions:PATH"} <= {word.strip("().") for word in listed}


def test_sets_of_wordings_are_named_and_an_unknown_one_is_one_line(capsys):
    from fledgling.evals.exams import count_by_wordings
    from fledgling.tasks.task import DEV, PRACTICE, TEST, TRAIN

    assert count_by_wordings([], 9) == {TEST: 9, TRAIN: 9}
    assert count_by_wordings(["dev", "practice"], 5) == {DEV: 5, PRACTICE: 5}
    for wordings, expected in (
        ("unseen", 'has "unseen"; expected some of test, train'),
        ("train", "has no exam"),
        ("practised", '"practised" was renamed to "practice"'),
    ):
        assert main(["eval", "chat", "nowhere", "--tasks", "identity", "--wordings", wordings]) != 0
        assert expected in capsys.readouterr().err


def test_questions_of_two_files_of_one_name_are_recorded_in_two_lines(trained_run, run_command, tmp_path):
    out = trained_run[0]
    for folder in "ab":
        (tmp_path / folder).mkdir()
        write_rows(tmp_path / folder / "quiz.jsonl", make_choice_rows(folder, 4))
        code, text, _ = run_command("eval", "chat", out, "--tasks", f"questions:{tmp_path / folder / 'quiz.jsonl'}")
        assert code == 0 and text.startswith("questions:quiz.jsonl#")
    lines = [line for line in read_jsonl(out / "pretrain/evals.jsonl") if line["name"].startswith("questions:")]
    assert len({line["name"] for line in lines}) == len(lines) == 2
    assert len([one for one in summarize_run(out)["evals"] if one["name"].startswith("questions:")]) == 2
    assert len(list((out / "pretrain" / "exams").rglob("questions-*.jsonl"))) == 2, "nor do they share answers"
