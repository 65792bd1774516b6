"""Scores of exams are recomputed from the weights, those that no seal has first."""

import json
import random
import time

import pytest

from benchmarks import verify as tampering
from fledgling.evals.exams import run_exams, select_exams
from fledgling.evals.session import EvalSession
from fledgling.record.seal import seal_stage
from fledgling.verify import scores
from fledgling.verify.files import NEWER_THAN_HISTORY, check_checkpoints, list_stage_checkpoints
from fledgling.verify.scores import check_scores, list_score_lines


def check(run, count=9, seconds=600.0, elsewhere=False):
    return check_scores(run, count, time.monotonic() + seconds, random.Random(1), elsewhere, lambda text: None)


def add_line(run, stage="rl", **changed):
    """Appends a line after the seal: the last one of an exam with other values."""
    path = run / stage / "evals.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    line = [line for line in lines if line["name"] == "counting_test"][-1] | changed
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return line


def test_scores_of_training_and_of_eval_are_recomputed(copy, monkeypatch):
    session = EvalSession.open(copy / "sft")
    run_exams(session, select_exams(["identity"], ["test"], 6), None)
    lines = [line for line in list_score_lines(copy) if not line.find_obstacle()]
    assert [line.values["name"] for line in lines if not line.is_sealed] == ["identity_test"] and len(lines) > 20
    lines = [line for line in lines if (line.stage == "sft" and line.num_questions == 1) or not line.is_sealed]
    assert {line.values["step"] for line in lines} == {0, 6}, "the weights that the stage began from too"
    monkeypatch.setattr(scores, "list_score_lines", lambda run: lines)
    found = check(copy, count=len(lines))
    assert found.checked == found.total == len(lines) > 4 and not found.problems and not found.notes


@pytest.mark.parametrize("sealed", [False, True])
def test_a_forged_score_is_named(copy, sealed, monkeypatch):
    listed = scores.list_score_lines
    monkeypatch.setattr(scores, "list_score_lines", lambda run: listed(run)[-2:])
    line = add_line(copy, value=0.97, low=0.9, high=0.99)
    if sealed:
        seal_stage(copy / "rl")
    found = check(copy, count=99 if sealed else 1)
    (problem,) = found.problems
    number = len((copy / "rl/evals.jsonl").read_text().splitlines())
    assert problem.startswith(f"rl/evals.jsonl line {number}: counting_test over {line['n']} questions is 0.97, and 0.")
    assert "from the weights of" in problem and found.checked == (found.total if sealed else 1)


def test_a_second_value_of_what_training_alone_measures_is_named(copy):
    """Whatever its number of rows: the report would quote the last line."""
    lines = [json.loads(line) for line in (copy / "rl/evals.jsonl").read_text().splitlines()]
    bits = [line for line in lines if line["name"] == "bits_per_byte"][-1]
    assert scores.find_added_measurements(copy) == []
    with (copy / "rl/evals.jsonl").open("a") as file:
        file.write(json.dumps(bits | {"value": 0.5, "n": 13}) + "\n")
    (problem,) = scores.find_added_measurements(copy)
    assert problem.startswith(
        f"rl/evals.jsonl line {len(lines) + 1}: bits_per_byte of step {bits['step']} is in the seal"
    )
    assert problem in check(copy, count=1).problems


NOT_RECOMPUTED = [
    ({"name": "core"}, "is not an exam that is recomputed, and no seal has it"),
    ({"name": ["x"]}, "is not an exam that is recomputed"),
    ({"n": None}, "has no value, or not 1 to 2,000 questions"),
    ({"n": 10**9}, "has no value, or not 1 to 2,000 questions"),
    ({"value": "1"}, "has no value, or not 1 to 2,000 questions"),
    ({"step": 77}, "the checkpoint of step 77 is gone, and no seal has it"),
    ({"tools": "python"}, "it was measured with other questions or tools"),
    ({"baseline": 0.123}, "it was measured with other questions or tools"),
    ({"name": "arc_easy", "n": 99}, "arc_easy"),
]


def test_what_cannot_be_recomputed_is_a_note(copy):
    before = (copy / "rl/evals.jsonl").read_text()
    for changed, reason in NOT_RECOMPUTED:
        (copy / "rl/evals.jsonl").write_text(before)
        add_line(copy, **changed)
        found = check(copy, count=1)
        assert not found.problems and len(found.notes) == 1 and reason in found.notes[0], found


def test_an_exam_ends_with_its_time_and_says_so(copy, monkeypatch):
    add_line(copy)
    found = check(copy, count=3, seconds=-1)
    assert found.checked == 0 and [note.partition(" rl/")[0] for note in found.notes][:1] == ["no time left for"]
    clock = iter([0.0, *[2.0] * 99])
    monkeypatch.setattr(scores.time, "monotonic", lambda: next(clock))
    found = check_scores(copy, 1, 1.0, random.Random(1), False, lambda text: None)
    assert found.checked == 0 and len(found.notes) == 1, "while it was answered"


@pytest.mark.parametrize(
    ("n", "value", "here", "elsewhere"),
    [
        (4, 0.25, True, True),
        (4, 0.5, False, False),
        (200, 0.02, True, True),
        (200, 0.025, False, True),
        (50, 0.16, 0, 0),
    ],
)
def test_a_score_may_differ_by_one_question_or_the_difference_allowed(n, value, here, elsewhere):
    line = scores.ScoreLine("rl", 1, {"name": "counting", "n": n, "value": value}, True, None)
    assert (line.allows(0.0, False), line.allows(0.0, True)) == (here, elsewhere)


@pytest.mark.parametrize("newer", [True, False])
def test_a_history_that_was_removed_gives_no_tolerance(copy, newer):
    path = list_stage_checkpoints(copy, "rl")[-1]
    state = json.loads((path / "state.json").read_text())
    left_out = {"history"} if newer else {"history", *NEWER_THAN_HISTORY}
    (path / "state.json").write_text(json.dumps({name: value for name, value in state.items() if name not in left_out}))
    tampering.rewrite_manifest(path)
    place = f"rl/checkpoints/{path.name}/state.json"
    assert check_checkpoints(copy, lambda text: None).problems == ([f"{place}: history was removed"] if newer else [])
