"""CORE during training: measured when due and at the end if its files exist; else one notice."""

from types import SimpleNamespace

from fledgling.config import load_recipe
from fledgling.evals import chat
from fledgling.record import read_jsonl
from fledgling.runtime import device
from fledgling.tasks.task import Question
from fledgling.train import evals
from fledgling.train.hooks import StageHooks
from fledgling.train.run import run_stage
from tests.all_stages import make_all_stages_recipe
from tests.made_up_core import BASELINES, write_core_bundle


def test_core_is_measured_every_few_steps_and_its_tasks_at_the_end(tmp_path):
    root = write_core_bundle(tmp_path / "data")
    recipe = make_all_stages_recipe(
        tmp_path, **{"pretrain.core_every": 3, "pretrain.core_max_per_task": 3, "run.data_dir": f'"{root}"'}
    )
    run_stage(recipe, "pretrain", quiet=True)
    evals = read_jsonl(tmp_path / "run" / "pretrain" / "evals.jsonl")
    core = [(line["step"], line["n"]) for line in evals if line["name"] == "core"]
    assert core == [(3, 21), (4, 21)], "seven tasks of at most three items, after three steps and at the end"
    assert {line["name"] for line in evals if line["name"].startswith("core_")} == {f"core_{n}" for n in BASELINES}
    assert all(line["step"] == 4 for line in evals if line["name"].startswith("core_"))


def test_without_its_files_there_is_one_notice(tmp_path):
    recipe = make_all_stages_recipe(tmp_path, **{"pretrain.core_every": 1, "run.data_dir": f'"{tmp_path}"'})
    run_stage(recipe, "pretrain", quiet=True)
    stage = tmp_path / "run" / "pretrain"
    notices = [line["text"] for line in read_jsonl(stage / "notices.jsonl") if "CORE" in line["text"]]
    assert len(notices) == 1 and "fledgling data fetch core" in notices[0]
    assert not [line for line in read_jsonl(stage / "evals.jsonl") if line["name"].startswith("core")]


def test_the_large_recipe_measures_core():
    assert load_recipe("d20-8xh100").pretrain.core_every == 2000
    assert load_recipe("quickstart").pretrain.core_every == 0


def test_the_same_weights_have_one_value_at_the_end_of_a_stage_and_at_the_start_of_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(evals, "FIRST_ROWS", 4)
    recipe = make_all_stages_recipe(tmp_path, **{"pretrain.eval_questions": 8, "midtrain.eval_questions": 8})
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e9)
    for stage in ("pretrain", "midtrain"):
        run_stage(recipe, stage, quiet=True, hooks=StageHooks(select_evals=lambda evals: evals[:3]))
    before, after = (read_jsonl(tmp_path / "run" / stage / "evals.jsonl") for stage in ("pretrain", "midtrain"))
    end = {(line["name"], line["n"]): line["value"] for line in before if line["step"] == 4}
    start = {(line["name"], line["n"]): line["value"] for line in after if line["step"] == 0}
    start = {key: value for key, value in start.items() if key[0] != "zeros"}
    assert ("bits_per_byte", 4) in start and ("spelling", 2) in start, "a part of the rows and questions"
    assert {key: end[key] for key in start} == start
    assert {n for name, n in end if name == "spelling"} == {2, 8} and len({n for n_, n in end if "bits" in n_}) >= 2


def test_compressors_are_compared_with_after_pretraining_alone(tmp_path):
    recipe = make_all_stages_recipe(tmp_path)
    for stage, expected in (("pretrain", True), ("midtrain", False)):
        found = []
        hooks = StageHooks(select_evals=lambda evals, found=found: found.extend(evals) or ())
        run_stage(recipe, stage, quiet=True, hooks=hooks)
        assert ("compression" in [entry.name for entry in found]) == expected, stage


def test_questions_that_lose_their_beginning_are_counted(monkeypatch):
    question = Question("own", "What is it?", "This.")
    exam = chat.Exam("own", None, (question,) * 8)
    monkeypatch.setattr(chat, "build_exams", lambda *args: [exam])
    cropped = iter([True, False, True, False, False, False, False, False] * 2)

    def answer(engine, exams, world):
        return [[chat.ExamAnswer(q, "", 0.0, next(cropped)) for q in exam.questions] for exam in exams]

    monkeypatch.setattr(chat, "answer_exams", answer)
    notices = []
    context = SimpleNamespace(
        recipe=load_recipe("quickstart"),
        engine=SimpleNamespace(tool_name="none"),
        world=None,
        recorder=SimpleNamespace(log_notice=notices.append),
    )
    for last in (True, False):
        evals._run_exams(context, ["own"], 8, 4, last)
    assert notices == [
        "exam own: 2 of 8 questions are longer than model.context has room for, and lose their beginning"
    ]


def test_an_exam_whose_files_are_gone_is_left_out_with_a_notice(tmp_path):
    lines: list[str] = []
    recipe = load_recipe("quickstart", [f"run.data_dir={tmp_path}"])
    context = SimpleNamespace(recipe=recipe, recorder=SimpleNamespace(log_notice=lines.append))
    assert evals.list_available_exams(["identity", "gsm8k"], context) == ["identity"]
    assert len(lines) == 1 and lines[0].startswith("no exam in gsm8k: gsm8k: no test split under")
