"""Public sets: what a row means, which split is read when, and what a wrong file is answered with."""

import gzip
import json
import shutil
from decimal import Decimal

import pytest

from fledgling.config import UserError
from fledgling.infer.tools import calculate
from fledgling.tasks import PUBLIC_TASKS, gsm8k, humaneval, load_source, load_task, multiple_choice
from fledgling.tasks.task import Question
from fledgling.text.conversation import check_conversation
from tests.made_up_sets import REAL, choice_rows, made_up_sets, needs_real_data, problem, write_rows

TRAINED = ("arc_easy", "arc_challenge", "mmlu", "gsm8k")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return made_up_sets(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", TRAINED)
def test_an_epoch_gives_every_row_once_in_an_order_of_its_own(root, name):
    task = load_task(name, root)
    count = len(task)
    epochs = [[json.dumps(task.get_train_example(e * count + i, 5)) for i in range(count)] for e in range(3)]
    assert [len(set(epoch)) for epoch in epochs] == [count] * 3 and len({tuple(sorted(e)) for e in epochs}) == 1
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] == [json.dumps(load_task(name, root).get_train_example(i, 5)) for i in range(count)]
    assert epochs[0] != [json.dumps(task.get_train_example(i, 6)) for i in range(count)]
    for conversation in epochs[0]:
        check_conversation(json.loads(conversation))


@pytest.mark.parametrize("name", TRAINED)
def test_training_and_practice_never_see_the_test_split(root, name):
    task = load_task(name, root)
    tested = {question.prompt for question in task.list_exam_questions(1000)[0][1]}
    assert len(tested) == len(task.examples("test"))
    assert tested.isdisjoint(task.get_train_example(i, 0)["messages"][0]["content"] for i in range(2 * len(task)))
    assert tested.isdisjoint(task.get_practice_question(i, 0).prompt for i in range(2 * len(task)))


def test_a_small_exam_is_the_beginning_of_a_large_one(root):
    for name in PUBLIC_TASKS:
        task = load_task(name, root)
        assert task.list_exam_questions(4)[0][1] == task.list_exam_questions(99)[0][1][:4]
    subjects = {question.facts["subject"] for question in load_task("mmlu", root).list_exam_questions(8)[0][1]}
    assert subjects == {"botany", "music"}


def test_the_letters_are_in_the_prompt_as_they_are_to_be_said():
    text = multiple_choice.format_prompt("Which?", ["red", "blue", "green"])
    assert text == (
        "Multiple Choice question: Which?\n- red=A\n- blue=B\n- green=C\n\n"
        "Respond only with the letter of the correct answer."
    )
    question = Question("arc_easy", text, "B", {}, ("A", "B", "C"))
    assert [multiple_choice.score_letter(question, answer) for answer in ("B", "B.", "(b)", " B\n")] == [1.0] * 4
    assert [multiple_choice.score_letter(question, answer) for answer in ("A", "", "blue", "B or C", "AB")] == [0.0] * 5


def test_the_hub_s_spelling_of_a_row_means_the_same():
    ours = {"question": "Which?", "choices": ["red", "blue"], "answer": 1}
    hub = {"question": "Which?", "choices": {"text": ["red", "blue"], "label": ["1", "2"]}, "answerKey": "2"}
    auxiliary = {"train": {**ours, "subject": ""}}
    items = [multiple_choice.parse_row("arc_easy", row, "here:1") for row in (ours, hub, auxiliary)]
    assert items[0] == items[1] == items[2] and items[0].reply == "B"


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


def test_a_number_behind_the_mark_is_the_answer():
    question = gsm8k.parse_row("gsm8k", problem(1, 69_999), "here:1").question
    assert question.answer == "70000"
    for right in ("#### 70000", "so\n#### 70,000", "#### 70000.00 apples", "#### 70,000."):
        assert gsm8k.score_final_answer(question, right) == 1.0, right
    for wrong in ("70000", "#### 70001", "#### -70000", "#### 7", "", "#### $", "#### 1\n#### 70000"):
        assert gsm8k.score_final_answer(question, wrong) == 0.0, wrong


def gsm8k_check(root):
    """Return (reference answers that score 1, altered ones that do, items) of the test split."""
    task = load_task("gsm8k", root)
    right = wrong = 0.0
    for item in task.examples("test"):
        said = item.reply[-1]["text"]
        right += task.score(item.question, said)
        for altered in (said.replace("####", ""), f"#### {Decimal(item.question.answer) + 1}", f"{said}0", ""):
            wrong += task.score(item.question, altered)
    return right, wrong, len(task.examples("test"))


def test_reference_answers_score_and_altered_ones_do_not(root):
    assert gsm8k_check(root) == (12, 0, 12)


@needs_real_data
def test_all_1319_reference_answers_score_and_altered_ones_do_not():
    assert gsm8k_check(REAL) == (1319, 0, 1319)


@needs_real_data
def test_the_calculator_says_what_the_demonstrations_show():
    pairs = [
        (call["text"], output["text"])
        for item in load_task("gsm8k", REAL).items("train")
        for call, output in zip(item.reply, item.reply[1:], strict=False)
        if call["type"] == "python"
    ]
    odd = [pair for pair in pairs if calculate(pair[0]) != pair[1]]
    assert len(pairs) > 23_000 and odd == [("560//10", "56"), ("180//3", "60")]


@needs_real_data
def test_the_published_splits_have_their_sizes():
    sizes = {name: len(load_task(name, REAL).items("test")) for name in PUBLIC_TASKS}
    assert sizes == {"arc_easy": 2376, "arc_challenge": 1172, "mmlu": 14042, "gsm8k": 1319, "humaneval": 164}
    assert [len(load_task(name, REAL)) for name in ("arc_easy", "arc_challenge", "gsm8k")] == [2251, 1119, 7473]
    assert len({item.question.facts["subject"] for item in load_task("mmlu", REAL).items("test")}) == 57


def test_an_answer_becomes_a_program_by_three_rules(root):
    question = load_task("humaneval", root).examples("test")[1].question
    body = "    return twice(x) + 1\n"
    whole = f"def add_1(x):\n{body}"
    head = question.prompt.split("def add_1")[0]
    assert humaneval.build_program(question, body) == f"{question.prompt}{body}\n"
    assert humaneval.build_program(question, whole) == f"{head}{whole}\n"
    fenced = f"Sure:\n```python\n{whole}```\nIt adds."
    assert humaneval.build_program(question, fenced) == f"{head}{whole.rstrip()}\n" or whole in fenced
    assert humaneval.build_program(question, fenced).startswith(head)
    assert "Sure" not in humaneval.build_program(question, fenced) and "It adds" not in humaneval.build_program(
        question, fenced
    )
    assert humaneval.build_program(question, f"```\n{whole}") == f"{head}{whole}\n"  # cut off before the fence closes


def passing(root, answer):
    """Return how many of HumanEval's tests pass with `answer(item)`."""
    task = load_task("humaneval", root)
    items = task.examples("test")
    return sum(task.score_batch([(item.question, answer(item)) for item in items]))


def test_solutions_pass_in_every_form_and_broken_ones_in_none(root):
    assert passing(root, lambda item: item.question.answer) == 5
    assert passing(root, lambda item: item.question.prompt + item.question.answer) == 5
    assert passing(root, lambda item: item.reply) == 5
    for broken in ("    return None\n", "    raise SystemExit(0)\n", "", "    def f(:\n"):
        assert passing(root, lambda item, text=broken: text) == 0


@needs_real_data
def test_all_164_solutions_pass_and_broken_ones_do_not():
    assert passing(REAL, lambda item: item.reply) == 164
    assert passing(REAL, lambda item: "    return None\n") == 0


def test_there_is_nothing_to_train_on_in_humaneval(root):
    with pytest.raises(UserError, match="humaneval has no train split; it is for evaluation only"):
        load_task("humaneval", root).get_train_example(0, 0)


@pytest.mark.parametrize("name", [*TRAINED, "smoltalk"])
def test_a_missing_set_says_how_to_get_it(tmp_path, name):
    with pytest.raises(UserError) as error:
        load_source(name, tmp_path).files()
    said = str(error.value)
    assert f"fledgling data fetch {name}" in said and str(tmp_path) in said and "\n" not in said


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (['{"question": "Which?", "choi'], "test.jsonl:2: not JSON"),
        (['{"question": "Which?", "choi'], "cut off: fetch or copy it again"),
        ([{"query": "Which?", "choices": ["a", "b"], "answer": 0}], 'column "question" is missing'),
        ([{"question": "Which?", "answer": 0}], 'column "choices" holds no list'),
        ([{"question": "Which?", "choices": ["a"], "answer": 0}], "2 to 26 choices"),
        ([{"question": "Which?", "choices": ["a", "b"], "answer": 2}], '"answer" is 2; expected 0 to 1'),
        ([{"question": "Which?", "choices": ["a", "b"]}], '"answer" is None'),
        (["[1]\n"], "test.jsonl:2: a list, expected"),
    ],
)
def test_a_bad_row_is_one_line_with_file_and_line(tmp_path, rows, said):
    good = choice_rows("stone", 1)
    write_rows(tmp_path / "evals" / "arc" / "arc_easy_test.jsonl", good + rows)
    with pytest.raises(UserError) as error:
        load_task("arc_easy", tmp_path).list_exam_questions(5)
    assert said in str(error.value) and "arc_easy_test.jsonl:2" in str(error.value) and "\n" not in str(error.value)


def test_a_truncated_pack_an_empty_file_and_a_torn_table_are_told(root, tmp_path):
    packed = (root / "evals" / "humaneval" / "HumanEval.jsonl.gz").read_bytes()
    there = tmp_path / "evals" / "humaneval" / "HumanEval.jsonl.gz"
    there.parent.mkdir(parents=True)
    there.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match="damaged or cut off at line"):
        load_task("humaneval", tmp_path).list_exam_questions(1)
    there.write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match="holds no row"):
        load_task("humaneval", tmp_path).list_exam_questions(1)
    table = tmp_path / "smoltalk" / "data" / "train-0.parquet"
    shutil.copytree(root / "smoltalk", tmp_path / "smoltalk")
    table.write_bytes((root / "smoltalk/data/all/train-00000-of-00001.parquet").read_bytes()[:-40])
    with pytest.raises(UserError, match="damaged or no parquet file"):
        len(load_source("smoltalk", tmp_path))


def test_conversations_come_once_an_epoch_from_blocks_of_any_kind(root, tmp_path):
    talk = load_source("smoltalk", root)
    rows = [talk.get_train_example(i, 3)["messages"][0]["content"] for i in range(100)]
    assert len(talk) == 50 and len(set(rows[:50])) == 50 and set(rows[:50]) == set(rows[50:]) and rows[:50] != rows[50:]
    many = [
        {"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "yes"}]}
        for n in range(2500)
    ]
    lines = [line for row in many for line in (row, "\n")]  # empty lines are no rows
    mine = load_source(f"chat:{write_rows(tmp_path / 'mine.jsonl', lines)}")
    seen = [mine.get_train_example(i, 1)["messages"][0]["content"] for i in range(2500)]
    assert sorted(map(int, seen)) == list(range(2500)) and seen != sorted(seen, key=int)
    assert mine.get_train_example(1700, 1)["messages"][0]["content"] == seen[1700]


def test_the_user_s_questions_are_examined_practised_and_learned(tmp_path):
    rows = [{"question": "What is the capital of Peru?", "answer": "Lima"}, *choice_rows("coin", 1)]
    path = write_rows(tmp_path / "mine.jsonl", rows)
    task = load_task(f"questions:{path}")
    [(name, questions)] = task.list_exam_questions(9)
    assert name == f"questions:{path}" and {bool(question.choices) for question in questions} == {True, False}
    written = next(question for question in questions if not question.choices)
    assert task.score(written, "lima.") == 1.0 and task.score(written, "Rome") == 0.0
    assert {task.get_practice_question(i, 0).prompt for i in range(2)} == {question.prompt for question in questions}
    check_conversation(task.get_train_example(0, 0))
    with pytest.raises(UserError, match=r'mine.jsonl:1: column "answer" is missing'):
        load_task(f"questions:{write_rows(tmp_path / 'mine.jsonl', [{'question': 'Why?'}])}").get_train_example(0, 0)
