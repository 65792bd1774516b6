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


@pytest.mark.parametrize(
    ("name", "content", "answers"),
    [
        ("a.jsonl", '{"Question": "2+2?", "ANSWER": 4}\n{"question": "1>2?", "answer": false}\n', ["4", "false"]),
        ("a.csv", "question;Answer\n2+2?;4\n", ["4"]),
        ("a.csv", "question,choices,answer\n2+2?,\"[3, 4]\",1\nWho?,\"['I', 'you']\",A\nSo?,,No\n", ["B", "A", "No"]),
    ],
)
def test_questions_are_read_from_tables_and_numbers(tmp_path, name, content, answers):
    (tmp_path / name).write_text(content)
    [(_, questions)] = load_task(f"questions:{tmp_path / name}").list_exams({TEST: 9})
    assert sorted(question.answer for question in questions) == sorted(answers)


@pytest.mark.parametrize(
    "row", ['{"question": "2+2?", "choices": "34", "answer": 0}', '{"question": {}, "answer": 4}', '{"answer": 4}']
)
def test_a_row_that_is_no_question_is_one_line(tmp_path, row):
    (tmp_path / "a.jsonl").write_text(row)
    with pytest.raises(UserError, match=r'a.jsonl:1: column "(choices|question)" (holds|is)') as error:
        load_task(f"questions:{tmp_path / 'a.jsonl'}")
    assert "\n" not in str(error.value)
