"""`eval chat`, `eval passk` and `data overlap` from the command line: results, what is kept, and mistakes."""

import json
import shutil

import pytest
import torch

from fledgling.cli import main
from fledgling.evals import chat
from fledgling.infer.engine import Engine
from fledgling.record import read_jsonl
from fledgling.report.summary import summarize_run
from fledgling.train.run import run_stage
from tests.made_up_core import bundle
from tests.made_up_sets import made_up_sets, write_rows
from tests.tiny import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exams")
    recipe = tiny(folder, **{"stages": '["pretrain"]', "pretrain.steps": 2})
    run_stage(recipe, "pretrain", quiet=True)
    return folder / "run", made_up_sets(folder / "data")


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "run"), trained[1]


def asked(capsys, *words):
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_chatcore_is_asked_kept_recorded_and_not_asked_again(run, capsys, tmp_path):
    out, data = run
    words = ("eval", "chat", out, "--tasks", "chatcore", "--questions", 4, "--data-dir", data, "--json")
    code, shown, told = asked(capsys, *words, "--log", tmp_path / "log.jsonl")
    found = {m["name"]: m for m in json.loads(shown)}
    assert code == 0 and set(found) == {"arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval", "chatcore"}
    assert found["mmlu"]["n"] == 4 and found["mmlu"]["chance"] == 0.25 and "gsm8k 4/4" in told
    assert all(m["low"] <= m["value"] <= m["high"] for m in found.values())
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(log) == 20 and {"prompt", "expected", "answer", "score"} <= set(log[0])
    evals = {one["name"]: one["value"] for one in summarize_run(out)["evals"]}
    assert evals["chatcore"] == found["chatcore"]["value"] and evals["gsm8k"] == found["gsm8k"]["value"]
    [kept] = (out / "pretrain" / "exams").rglob("mmlu.jsonl")
    key, *answers = read_jsonl(kept)
    assert [one["place"] for one in answers] == [0, 1, 2, 3]
    kept.write_text("".join(json.dumps(line) + "\n" for line in [key, *({**one, "score": 1.0} for one in answers)]))
    again = {m["name"]: m["value"] for m in json.loads(asked(capsys, *words)[1])}
    assert again["mmlu"] == 1.0 and again["gsm8k"] == found["gsm8k"]["value"]
    fresh = {m["name"]: m["value"] for m in json.loads(asked(capsys, *words, "--fresh")[1])}
    assert fresh["mmlu"] == found["mmlu"]["value"]


def test_fewer_questions_do_not_replace_more_and_out_leaves_the_run_alone(run, capsys, tmp_path):
    out, data = run
    common = ("eval", "chat", out, "--tasks", "arc_easy", "--data-dir", data)
    asked(capsys, *common, "--questions", 9)
    before = (out / "pretrain" / "evals.jsonl").read_bytes()
    asked(capsys, *common, "--questions", 3)
    asked(capsys, *common, "--questions", 12, "--out", tmp_path / "elsewhere")
    assert (out / "pretrain" / "evals.jsonl").read_bytes() == before
    assert (tmp_path / "elsewhere" / "arc_easy.jsonl").is_file()
    lines = [line for line in read_jsonl(out / "pretrain" / "evals.jsonl") if line["name"] == "arc_easy"]
    assert [line["n"] for line in lines] == [9]


def test_stopped_within_an_exam_only_unanswered_groups_are_asked(run, capsys, tmp_path, monkeypatch):
    out, data = run
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
    _, whole, _ = asked(capsys, *words)
    [kept] = (out / "pretrain" / "exams").rglob("gsm8k.jsonl")
    lines = kept.read_text().splitlines(keepends=True)
    assert len(lines) == 12
    kept.write_text("".join(lines[:7]) + lines[7][:20])  # a group of four, two of the next, and a torn line
    prompts, generate = [], Engine.generate
    monkeypatch.setattr(Engine, "generate", lambda self, p, *a, **k: prompts.extend(p) or generate(self, p, *a, **k))
    _, again, told = asked(capsys, *words)
    assert again == whole and len(prompts) == 7 and "gsm8k: 6 answers kept" in told
    answers = {line["place"]: line for line in map(json.loads, kept.read_text().splitlines()[1:])}
    assert answers == {line["place"]: line for line in map(json.loads, lines[1:])}
    prompts.clear()
    assert asked(capsys, *words)[1] == whole and not prompts


@pytest.mark.parametrize("verb", ["chat", "core", "bpb", "passk"])
def test_two_ranks_answer_as_one(run, tmp_path, verb, monkeypatch, capfd):
    out, data = run
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "text.txt").write_text("A cat sat on a mat, and another cat saw it. " * 400)
    core = ("--data-dir", bundle(tmp_path / "core"), "--max-per-task", 4, "--dtype", "float32")
    more = {
        "chat": ("--tasks", "arc_easy,gsm8k,spelling", "--questions", 9, "--data-dir", data),
        "core": core,
        "bpb": (tmp_path / "text.txt",),
        "passk": ("--task", "spelling", "--samples", 2, "--k", "1,2", "--questions", 40),
    }[verb]
    words = [str(word) for word in ("eval", verb, out, *more, "--device", "cpu", "--json")]
    kept = {"chat": "--out", "core": "--out", "bpb": None, "passk": "--out"}[verb]
    found = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for ranks in (1, 2):
        where = [kept, str(tmp_path / f"kept{ranks}")] if kept else []
        assert main([*words, *where, *(["--gpus", "2"] if ranks == 2 else [])]) == 0
        found.append(json.loads(capfd.readouterr().out))
    torch.set_num_threads(threads)
    for one in found if verb == "core" else ():
        for task in one["tasks"]:
            task.pop("seconds")
    assert found[0] == found[1]


def test_pass_at_k_goes_on_where_it_stopped(run, capsys):
    out, data = run
    common = ("eval", "passk", out, "--task", "gsm8k", "--samples", 3, "--k", "1,3", "--data-dir", data, "--json")
    code, shown, _ = asked(capsys, *common, "--questions", 4)
    found = json.loads(shown)
    assert code == 0 and [(m["name"], m["n"]) for m in found] == [("gsm8k_pass@1", 4), ("gsm8k_pass@3", 4)]
    [kept] = (out / "pretrain" / "exams").rglob("gsm8k-passk-*.jsonl")
    lines = kept.read_text().splitlines(keepends=True)
    assert len(lines) == 4 and len(json.loads(lines[0])["answers"]) == 3
    kept.write_text("".join(lines[:2]))
    assert json.loads(asked(capsys, *common, "--questions", 4)[1]) == found
    assert kept.read_text().splitlines(keepends=True) == lines


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tasks", "arc_esy"), 'did you mean "arc_easy"'),
        (("--tasks", "gsm8k", "--data-dir", "/nowhere"), "fledgling data fetch gsm8k"),
        (("--questions", "0"), "expected at least 1"),
        (("--tasks", "questions:/nowhere.jsonl"), "cannot read /nowhere.jsonl: no such file"),
    ],
)
def test_mistakes_are_one_line(run, capsys, words, said):
    code, shown, told = asked(capsys, "eval", "chat", run[0], *words)
    assert code == 1 and shown == "" and said in told and told.count("\n") == 1


def test_overlap_names_the_items_that_stand_in_training(run, capsys, tmp_path):
    data = run[1]
    row = json.loads((data / "evals/gsm8k/test.jsonl").read_text().splitlines()[3])
    write_rows(tmp_path / "text.jsonl", [{"text": "Nothing of interest."}, {"text": f"As they say: {row['question']}"}])
    code, shown, _ = asked(
        *(capsys, "data", "overlap", tmp_path / "text.jsonl", "gsm8k", "--tasks", "gsm8k,mmlu"),
        *("--data-dir", data, "--json", "--words", 9),
    )
    sets = json.loads(shown)["sets"]
    assert code == 0 and [m["item"] for m in sets["gsm8k"]["matches"]] == [3] and sets["mmlu"]["overlapping"] == 0
    assert sets["gsm8k"]["matches"][0]["origin"] == "text.jsonl:2"
    code, shown, told = asked(capsys, "data", "overlap", tmp_path / "text.jsonl", "--tasks", "spelling")
    assert code == 1 and "spelling is generated" in told
