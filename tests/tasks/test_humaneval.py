"""HumanEval: an answer becomes a program by three rules, and only correct programs pass."""

import pytest

from fledgling.tasks import humaneval, load_task
from tests.made_up_sets import REAL, needs_real_data, write_public_sets


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_public_sets(tmp_path_factory.mktemp("data"))


def test_an_answer_becomes_a_program_by_three_rules(root):
    question = load_task("humaneval", root).examples("test")[1].question
    body = "    return twice(x) + 1\n"
    function = f"def add_1(x):\n{body}"
    head = question.prompt.split("def add_1")[0]
    assert humaneval.build_program(question, body) == f"{question.prompt}{body}\n"
    assert humaneval.build_program(question, function) == f"{head}{function}\n"
    fenced = f"Sure:\n```python\n{function}```\nIt adds."
    assert humaneval.build_program(question, fenced) == f"{head}{function.rstrip()}\n" or function in fenced
    assert humaneval.build_program(question, fenced).startswith(head)
    assert "Sure" not in humaneval.build_program(question, fenced) and "It adds" not in humaneval.build_program(
        question, fenced
    )
    assert (
        humaneval.build_program(question, f"```\n{function}") == f"{head}{function}\n"
    )  # cut off before the fence closes


def count_passing(root, make_answer):
    """Returns how many of HumanEval's tests pass with `make_answer(example)`."""
    task = load_task("humaneval", root)
    examples = task.examples("test")
    return sum(task.score_batch([(example.question, make_answer(example)) for example in examples]))


def test_solutions_pass_in_every_form_and_broken_ones_in_none(root):
    assert count_passing(root, lambda example: example.question.answer) == 5
    assert count_passing(root, lambda example: example.question.prompt + example.question.answer) == 5
    assert count_passing(root, lambda example: example.reply) == 5
    for broken in ("    return None\n", "    raise SystemExit(0)\n", "", "    def f(:\n"):
        assert count_passing(root, lambda example, text=broken: text) == 0


@needs_real_data
def test_all_164_solutions_pass_and_broken_ones_do_not():
    assert count_passing(REAL, lambda example: example.reply) == 164
    assert count_passing(REAL, lambda example: "    return None\n") == 0
