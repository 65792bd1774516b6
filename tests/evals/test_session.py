"""Evaluation sessions: the rule for recording measurements, the stage of a checkpoint, and saved answers."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fledgling.evals.chat import Exam, ExamAnswer, build_exams
from fledgling.evals.measurement import Measurement
from fledgling.evals.session import EvalSession, answer_to_json, find_stage_dir, read_saved_answers, record_measurements
from fledgling.record.jsonl import JsonlWriter, read_jsonl
from fledgling.runtime.world import World
from fledgling.tasks import load_task
from fledgling.tasks.task import Question


def test_a_measurement_over_fewer_cases_never_replaces_one_over_more(tmp_path):
    stage_dir = tmp_path / "sft"
    record_measurements(stage_dir, 3, [Measurement("core", 0.2, n=100), Measurement("mmlu/law", 0.5, n=100)])
    record_measurements(stage_dir, 3, [Measurement("core", 0.9, n=99), Measurement("arc_easy", 0.3, n=5)])
    record_measurements(stage_dir, 3, [Measurement("core", 0.4, n=100)])
    record_measurements(stage_dir, 4, [Measurement("core", 0.1, n=1)])
    lines = [
        (line["stage"], line["step"], line["name"], line["value"]) for line in read_jsonl(stage_dir / "evals.jsonl")
    ]
    assert lines == [
        ("sft", 3, "core", 0.2),
        ("sft", 3, "arc_easy", 0.3),
        ("sft", 3, "core", 0.4),
        ("sft", 4, "core", 0.1),
    ]


def test_a_stage_directory_is_found_only_within_a_run(tmp_path):
    stage_dir = tmp_path / "run" / "sft"
    checkpoint = stage_dir / "checkpoints" / "step-1"
    checkpoint.mkdir(parents=True)
    assert find_stage_dir(checkpoint, {"stage": "sft"}) is None, "no metrics.jsonl: not a run"
    (stage_dir / "metrics.jsonl").write_text("{}\n")
    assert find_stage_dir(checkpoint, {"stage": "sft"}) == stage_dir
    assert find_stage_dir(checkpoint, {"stage": "rl"}) is None
    assert find_stage_dir(stage_dir, {"stage": "sft"}) is None


def test_saved_answers_are_read_under_their_key_only(tmp_path):
    [exam] = build_exams(["identity"], 3)
    writer, key = JsonlWriter(tmp_path / "identity.jsonl"), {"checkpoint": "x", "questions": 3}
    answers = {index: ExamAnswer(exam.questions[index], f"answer {index}", 1.0) for index in (0, 2)}
    writer.append({"key": key})
    for index, answer in answers.items():
        writer.append({"place": index, **answer_to_json(answer)})
    writer.append({"place": 3, **answer_to_json(answers[0])})  # beyond the exam
    writer.close()
    assert read_saved_answers(writer.path, key, exam) == answers
    assert read_saved_answers(writer.path, {**key, "checkpoint": "y"}, exam) == {}
    assert read_saved_answers(tmp_path / "none.jsonl", key, exam) == {}


@pytest.mark.parametrize("changed", ["dtype", "weights", "questions"])
def test_the_key_of_saved_answers_has_all_that_they_are_a_function_of(changed, tmp_path):
    def key_of(dtype, manifest, count):
        (tmp_path / "manifest.json").write_text(manifest)
        [exam] = build_exams(["identity"], count)
        return EvalSession(tmp_path, {}, SimpleNamespace(dtype=dtype), None, None).exam_key(exam)

    facts = {"dtype": torch.float32, "weights": "a", "questions": 3}
    others = {"dtype": torch.bfloat16, "weights": "b", "questions": 4}
    assert key_of(*facts.values()) != key_of(*(facts | {changed: others[changed]}).values())


@pytest.mark.parametrize("spec", ["{folder}/game.py:Game", "game:Game"])
def test_answers_that_a_users_code_judged_are_not_read_once_it_is_edited(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fledgling.tasks.environments.episode_process.make_remote_class", lambda spec: None)
    (tmp_path / "manifest.json").write_text("a")
    (tmp_path / "game.py").write_text("class Game:\n    reward = 1\n")
    task = load_task(f"env:{spec.format(folder=tmp_path)}")
    exam = Exam("game", task, (Question("game", "How?", "so", {"seed": 1}),))
    key = EvalSession(tmp_path, {}, SimpleNamespace(dtype=torch.float32), None, None).exam_key
    before = key(exam)
    assert key(exam) == before != key(replace(exam, questions=(replace(exam.questions[0], facts={"seed": 2}),)))
    (tmp_path / "game.py").write_text("class Game:\n    reward = 2\n")
    assert key(exam) != before


def test_saved_answers_that_are_not_read_again_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("fledgling.evals.session.answer_exams", lambda *given: [[]])
    (tmp_path / "manifest.json").write_text("a")
    [exam] = build_exams(["identity"], 3)
    session, lines = EvalSession(tmp_path, {}, SimpleNamespace(dtype=torch.float32), World.start("cpu"), None), []
    writer = JsonlWriter(tmp_path / f"{exam.name}.jsonl")
    writer.append({"key": {"checkpoint": "another"}})
    for index in range(2):
        writer.append({"place": index, **answer_to_json(ExamAnswer(exam.questions[index], "x", 1.0))})
    writer.close()
    session.run_exam(exam, tmp_path, log=lines.append)
    session.run_exam(exam, tmp_path, log=lines.append)
    assert lines == [f"{exam.name}: 2 saved answers are of other weights, questions or scoring: deleted"]
