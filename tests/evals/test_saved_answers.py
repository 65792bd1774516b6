"""Saved answers: read under their key, those that an older version saved too."""

from types import SimpleNamespace

import pytest
import torch

from fledgling.evals.chat import ExamAnswer, build_exams
from fledgling.evals.saved_answers import (
    answer_to_json,
    find_answers_file,
    read_correct_counts,
    read_saved_answers,
    sample_to_json,
)
from fledgling.evals.session import EvalSession
from fledgling.record.jsonl import JsonlWriter


def test_saved_answers_are_read_under_their_key_only(tmp_path):
    [exam] = build_exams(["identity"], 3)
    writer, key = JsonlWriter(tmp_path / "identity.jsonl"), {"checkpoint": "x", "questions": 3}
    answers = {index: ExamAnswer(exam.questions[index], f"answer {index}", 1.0) for index in (0, 2)}
    writer.append({"key": key})
    for index, answer in answers.items():
        writer.append({"index": index, **answer_to_json(answer)})
    writer.append({"index": 3, **answer_to_json(answers[0])})  # beyond the exam
    writer.close()
    assert read_saved_answers(writer.path, key, exam) == answers
    assert read_saved_answers(writer.path, {**key, "checkpoint": "y"}, exam) == {}
    assert read_saved_answers(tmp_path / "none.jsonl", key, exam) == {}


def test_saved_results_of_older_versions_are_read(tmp_path):
    [exam] = build_exams(["identity"], 3)
    writer, answer = JsonlWriter(tmp_path / "identity.jsonl"), ExamAnswer(exam.questions[1], "so", 1.0)
    for line in ({"key": {}}, {"place": 1, **answer_to_json(answer)}, {"place": [1]}):
        writer.append(line)
    assert read_saved_answers(writer.path, {}, exam) == {1: answer}
    samples = JsonlWriter(tmp_path / "samples.jsonl")
    for line in ({"right": 2}, {"correct": 1}):
        samples.append(line)
    assert read_correct_counts(samples.path) == [2, 1]


@pytest.mark.parametrize(
    ("scores", "correct"), [([0.5] * 10, 0), ([0.9], 0), ([1.0, 0.5, 0.5, 1.0], 2), ([0.0, 1.0], 1), ([-0.5, 1.0], 1)]
)
def test_a_sample_is_right_where_it_has_the_full_score(scores, correct):
    [exam] = build_exams(["identity"], 1)
    answers = [ExamAnswer(exam.questions[0], "so", score) for score in scores]
    assert sample_to_json(answers)["correct"] == correct


def test_answers_that_an_older_version_saved_are_read(tmp_path, monkeypatch):
    (tmp_path / "manifest.json").write_text("a")
    [exam] = build_exams(["identity"], 3)
    key = EvalSession(tmp_path, {}, SimpleNamespace(dtype=torch.float32), None, None).exam_key(exam)
    older = {"asked" if name == "questions_digest" else name: value for name, value in key.items()}
    assert list(older) != list(key)
    for header in (key, older, older | {"asked": "others"}):
        writer = JsonlWriter(tmp_path / "answers.jsonl")
        writer.append({"key": header})
        writer.append({"index": 1, **answer_to_json(ExamAnswer(exam.questions[1], "x", 1.0))})
        writer.close()
        assert len(read_saved_answers(writer.path, key, exam)) == (header.get("asked") != "others")
        writer.path.unlink()
    find_answers_file(tmp_path, "draws-identity", older).touch()
    assert find_answers_file(tmp_path, "draws-identity", key) == find_answers_file(tmp_path, "draws-identity", older)
