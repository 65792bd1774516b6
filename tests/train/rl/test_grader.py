"""The process of a custom reward: the function that a name means, and what it may return. `test_reward.py` runs it."""

import pytest

from fledgling.train.rl.grader import grade_answer, load_reward_function

QUESTION = {"task": "t", "prompt": "p", "answer": "4", "facts": {}, "choices": []}


def test_a_name_means_a_function_and_nothing_else(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text("def polite(question, answer): return float('please' in answer)\nLIMIT = 3\n")
    function = load_reward_function(f"{path}:polite")
    assert grade_answer(function, dict(QUESTION), "yes, please") == {"reward": 1.0}
    with pytest.raises(TypeError, match="LIMIT is a int, not a function"):
        load_reward_function(f"{path}:LIMIT")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, {"reward": 1.0}),
        (0.25, {"reward": 0.25}),
        (float("nan"), {"error": "returned nan, not a finite number"}),
        (None, {"error": "returned None, not a finite number"}),
        ("1", {"error": "returned '1', not a finite number"}),
    ],
)
def test_a_reward_is_a_finite_number(value, expected):
    assert grade_answer(lambda question, answer: value, dict(QUESTION), "") == expected


def test_an_error_of_the_function_is_its_answer():
    found = grade_answer(lambda question, answer: question.facts["none"], dict(QUESTION), "")
    assert found["error"].startswith("raised KeyError")
