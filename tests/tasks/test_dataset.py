"""Public sets as tasks: which split is read when, and errors for missing or corrupt files."""

import gzip
import json
import shutil

import pytest

from fledgling.config import UserError
from fledgling.tasks import PUBLIC_TASKS, load_source, load_task
from fledgling.tasks.task import TEST
from fledgling.text.conversation import check_conversation
from tests.made_up_sets import REAL, make_choice_rows, needs_real_data, write_public_sets, write_rows

WITH_TRAINING_SPLIT = ("arc_easy", "arc_challenge", "mmlu", "gsm8k")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_public_sets(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", WITH_TRAINING_SPLIT)
def test_an_epoch_gives_every_row_once_in_an_order_of_its_own(root, name):
    task = load_task(name, root)
    count = len(task)
    epochs = [[json.dumps(task.get_train_conversation(e * count + i, 5)) for i in range(count)] for e in range(3)]
    assert [len(set(epoch)) for epoch in epochs] == [count] * 3 and len({tuple(sorted(e)) for e in epochs}) == 1
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] == [json.dumps(load_task(name, root).get_train_conversation(i, 5)) for i in range(count)]
    assert epochs[0] != [json.dumps(task.get_train_conversation(i, 6)) for i in range(count)]
    for conversation in epochs[0]:
        check_conversation(json.loads(conversation))


@pytest.mark.parametrize("name", WITH_TRAINING_SPLIT)
def test_training_and_practice_never_see_the_test_split(root, name):
    task = load_task(name, root)
    tested = {question.prompt for question in task.list_exams({TEST: 1000})[0][1]}
    assert len(tested) == len(task.examples("test"))
    assert tested.isdisjoint(task.get_train_conversation(i, 0)["messages"][0]["content"] for i in range(2 * len(task)))
    assert tested.isdisjoint(task.get_practice_question(i, 0).prompt for i in range(2 * len(task)))


def test_a_small_exam_is_the_beginning_of_a_large_one(root):
    for name in PUBLIC_TASKS:
        task = load_task(name, root)
        assert task.list_exams({TEST: 4})[0][1] == task.list_exams({TEST: 99})[0][1][:4]
    subjects = {question.facts["subject"] for question in load_task("mmlu", root).list_exams({TEST: 8})[0][1]}
    assert subjects == {"botany", "music"}


@needs_real_data
def test_the_published_splits_have_their_sizes():
    sizes = {name: len(load_task(name, REAL).examples("test")) for name in PUBLIC_TASKS}
    assert sizes == {"arc_easy": 2376, "arc_challenge": 1172, "mmlu": 14042, "gsm8k": 1319, "humaneval": 164}
    assert [len(load_task(name, REAL)) for name in ("arc_easy", "arc_challenge", "gsm8k")] == [2251, 1119, 7473]
    assert len({item.question.facts["subject"] for item in load_task("mmlu", REAL).examples("test")}) == 57


def test_humaneval_has_no_training_split(root):
    with pytest.raises(UserError, match="humaneval has no train split; it is for evaluation only"):
        load_task("humaneval", root).get_train_conversation(0, 0)


@pytest.mark.parametrize("name", [*WITH_TRAINING_SPLIT, "smoltalk"])
def test_a_missing_set_says_how_to_get_it(tmp_path, name):
    with pytest.raises(UserError) as error:
        load_source(name, tmp_path).files()
    message = str(error.value)
    assert f"fledgling data fetch {name}" in message and str(tmp_path) in message and "\n" not in message


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (['{"question": "Which?", "choi'], "test.jsonl:2: not JSON"),
        (['{"question": "Which?", "choi'], "cut off, fetch or copy it again"),
        ([{"query": "Which?", "choices": ["a", "b"], "answer": 0}], 'column "question" is missing'),
        ([{"question": "Which?", "answer": 0}], 'column "choices" holds no list'),
        ([{"question": "Which?", "choices": ["a"], "answer": 0}], "2 to 26 choices"),
        ([{"question": "Which?", "choices": ["a", "b"], "answer": 2}], '"answer" is 2; expected 0 to 1'),
        ([{"question": "Which?", "choices": ["a", "b"]}], '"answer" is None'),
        (["[1]\n"], "test.jsonl:2: a list, expected"),
    ],
)
def test_a_bad_row_is_one_line_with_file_and_line(tmp_path, rows, problem):
    good = make_choice_rows("stone", 1)
    write_rows(tmp_path / "evals" / "arc" / "arc_easy_test.jsonl", good + rows)
    with pytest.raises(UserError) as error:
        load_task("arc_easy", tmp_path).list_exams({TEST: 5})
    assert problem in str(error.value) and "arc_easy_test.jsonl:2" in str(error.value) and "\n" not in str(error.value)


def test_a_truncated_archive_an_empty_file_and_a_torn_table_raise_errors(root, tmp_path):
    archive = (root / "evals" / "humaneval" / "HumanEval.jsonl.gz").read_bytes()
    path = tmp_path / "evals" / "humaneval" / "HumanEval.jsonl.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(archive[: len(archive) // 2])
    with pytest.raises(UserError, match="corrupt or cut off"):
        load_task("humaneval", tmp_path).list_exams({TEST: 1})
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match="holds no row"):
        load_task("humaneval", tmp_path).list_exams({TEST: 1})
    table = tmp_path / "smoltalk" / "data" / "train-0.parquet"
    shutil.copytree(root / "smoltalk", tmp_path / "smoltalk")
    table.write_bytes((root / "smoltalk/data/all/train-00000-of-00001.parquet").read_bytes()[:-40])
    with pytest.raises(UserError, match="corrupt or not a parquet file"):
        len(load_source("smoltalk", tmp_path))
