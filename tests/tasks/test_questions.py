"""A user's own questions: evaluated, practised and learned from one file."""

import pytest

from fledgling.config import UserError
from fledgling.tasks import load_task
from fledgling.tasks.task import TEST
from fledgling.text.conversation import check_conversation
from tests.made_up_sets import make_choice_rows, write_rows


def test_a_user_s_questions_are_evaluated_practised_and_learned(tmp_path):
    rows = [{"question": "What is the capital of Peru?", "answer": "Lima"}, *make_choice_rows("coin", 1)]
    path = write_rows(tmp_path / "own.jsonl", rows)
    task = load_task(f"questions:{path}")
    [(name, questions)] = task.list_exams({TEST: 9})
    assert name.startswith("questions:own.jsonl#") and {bool(question.choices) for question in questions} == {
        True,
        False,
    }
    free_text = next(question for question in questions if not question.choices)
    assert task.score(free_text, "lima.") == 1.0 and task.score(free_text, "Rome") == 0.0
    assert {task.get_practice_question(i, 0).prompt for i in range(2)} == {question.prompt for question in questions}
    check_conversation(task.get_train_conversation(0, 0))
    with pytest.raises(UserError, match=r'own.jsonl:1: column "answer" is missing'):
        load_task(f"questions:{write_rows(tmp_path / 'own.jsonl', [{'question': 'Why?'}])}").get_train_conversation(
            0, 0
        )
