"""GSM8K: marks become tool calls, and answers are compared by the number after ####."""

from decimal import Decimal

import pytest

from fledgling.tasks import gsm8k, load_task
from fledgling.text.calculator import calculate
from tests.made_up_sets import REAL, make_word_problem, needs_real_data, write_public_sets


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_public_sets(tmp_path_factory.mktemp("data"))


def test_marks_become_calls_and_the_tool_agrees():
    solution = "He has 3*4 = $<<3*4=12.00>>12.00.\nThen .5 of it is <<12*.5=6>>6.\n#### 6"
    assert gsm8k.split_solution(solution) == [
        {"type": "text", "text": "He has 3*4 = $"},
        {"type": "python", "text": "3*4"},
        {"type": "output", "text": "12"},
        {"type": "text", "text": "12.00.\nThen .5 of it is "},
        {"type": "python", "text": "12*.5"},
        {"type": "output", "text": "6"},
        {"type": "text", "text": "6.\n#### 6"},
    ]
    assert [gsm8k.normalize_number(n) for n in ("70,000", "0.50", ".5", "-3.0", "0.00", "1e3x", "100")] == [
        *("70000", "0.5", "0.5", "-3", "0", "1e3x", "100")
    ]


def test_a_number_after_the_mark_is_the_answer():
    question = gsm8k.parse_row("gsm8k", make_word_problem(1, 69_999), "here:1").question
    assert question.answer == "70000"
    for right in ("#### 70000", "so\n#### 70,000", "#### 70000.00 apples", "#### 70,000."):
        assert gsm8k.score_final_answer(question, right) == 1.0, right
    for wrong in ("70000", "#### 70001", "#### -70000", "#### 7", "", "#### $", "#### 1\n#### 70000"):
        assert gsm8k.score_final_answer(question, wrong) == 0.0, wrong


def score_references(root):
    """Returns (reference answers that score 1, altered ones that do, examples) of the test split."""
    task = load_task("gsm8k", root)
    right = wrong = 0.0
    for example in task.examples("test"):
        reply = example.reply[-1]["text"]
        right += task.score(example.question, reply)
        for altered in (reply.replace("####", ""), f"#### {Decimal(example.question.answer) + 1}", f"{reply}0", ""):
            wrong += task.score(example.question, altered)
    return right, wrong, len(task.examples("test"))


def test_reference_answers_score_and_altered_ones_do_not(root):
    assert score_references(root) == (12, 0, 12)


@needs_real_data
def test_all_1319_reference_answers_score_and_altered_ones_do_not():
    assert score_references(REAL) == (1319, 0, 1319)


@needs_real_data
def test_the_calculator_agrees_with_the_demonstrations():
    pairs = [
        (call["text"], output["text"])
        for example in load_task("gsm8k", REAL).examples("train")
        for call, output in zip(example.reply, example.reply[1:], strict=False)
        if call["type"] == "python"
    ]
    different = [pair for pair in pairs if calculate(pair[0]) != pair[1]]
    assert len(pairs) > 23_000 and different == [("560//10", "56"), ("180//3", "60")]
