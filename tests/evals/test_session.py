"""Evaluation sessions: the stage of a checkpoint, and saved answers."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fledgling.evals.chat import Exam, ExamAnswer, build_exams
from fledgling.evals.saved_answers import answer_to_json
from fledgling.evals.session import EvalSession, find_stage_dir
from fledgling.record.jsonl import JsonlWriter
from fledgling.runtime.world import World
from fledgling.tasks import load_task
from fledgling.tasks.task import Question


def test_a_stage_directory_is_found_only_within_a_run(tmp_path):
    stage_dir = tmp_path / "run" / "sft"
    checkpoint = stage_dir / "checkpoints" / "step-1"
    checkpoint.mkdir(parents=True)
    assert find_stage_dir(checkpoint, {"stage": "sft"}) is None, "no metrics.jsonl: not a run"
    (stage_dir / "metrics.jsonl").write_text("{}\n")
    assert find_stage_dir(checkpoint, {"stage": "sft"}) == stage_dir
    assert find_stage_dir(checkpoint, {"stage": "rl"}) is None
    assert find_stage_dir(stage_dir, {"stage": "sft"}) is None


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


def test_saved_answers_that_are_not_read_again_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("fledgling.evals.session.answer_exams", lambda *given: [[]])
    (tmp_path / "manifest.json").write_text("a")
    [exam] = build_exams(["identity"], 3)
    session, lines = EvalSession(tmp_path, {}, SimpleNamespace(dtype=torch.float32), World.start("cpu"), None), []
    writer = JsonlWriter(tmp_path / f"{exam.name}.jsonl")
    writer.append({"key": {"checkpoint": "another"}})
    for index in range(2):
        writer.append({"index": index, **answer_to_json(ExamAnswer(exam.questions[index], "x", 1.0))})
    writer.close()
    session.run_exam(exam, tmp_path, log=lines.append)
    session.run_exam(exam, tmp_path, log=lines.append)
    assert lines == [f"{exam.name}: 2 saved answers are of other weights, questions or scoring: deleted"]
