"""What a command writes by itself is not taken for a run's, nor is another checkpoint taken for it."""

import pytest

from fledgling.cli import main
from fledgling.config import STAGES, UserError
from fledgling.record.checkpoint import BASES_DIR
from fledgling.record.outside import (
    OWN_NAMES,
    require_no_part_of_run,
    require_outside_run,
    require_place_of_answers,
)
from fledgling.record.seal import RUN_FILES, SEAL, SPENT
from fledgling.record.stage_aside import name_replaced
from fledgling.report.page_footer import SET_ASIDE
from fledgling.scaling.race import CONTESTANT
from fledgling.scaling.race_run import POINTS, RESULT
from fledgling.scaling.settings import CELL


def test_a_directory_with_a_newer_checkpoint_is_rejected_since_commands_would_take_that_one(tmp_path):
    require_outside_run(tmp_path / "none", step=4)
    for name in ("step-00000002", "step-00000009.old"):
        (tmp_path / name).mkdir()
        require_outside_run(tmp_path, step=4)
    (tmp_path / "step-00000007").mkdir()
    require_outside_run(tmp_path)
    with pytest.raises(UserError, match="has step-00000007, which commands would take for this one, step-00000004"):
        require_outside_run(tmp_path, step=4)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run" / "sft").mkdir(parents=True)
    for name in ("recipe.toml", "environment.json", "report.html"):
        (tmp_path / "run" / name).write_text("")
    return tmp_path / "run"


def test_what_a_run_has_of_its_own_is_no_place_for_another_file(run):
    known = {*STAGES, BASES_DIR, *RUN_FILES, SEAL, SPENT, "report.html", SET_ASIDE, "lock", "lock.json"}
    known |= {
        CONTESTANT,
        POINTS,
        RESULT,
        CELL,
        "data",
        "tokenizer",
        *(name_replaced(run / stage).name for stage in STAGES),
    }
    assert known <= OWN_NAMES
    for name in (*OWN_NAMES, "sft/evals.jsonl", "tokenizer/tokenizer.json", "sft/checkpoints/step-00000001/x.gguf"):
        with pytest.raises(UserError, match="belongs to that run, and other commands do not write it"):
            require_no_part_of_run(run / name)
    for path in (run / "model.gguf", run / "exports/hf", run.parent / "report.html", run.parent / "sft/x"):
        require_no_part_of_run(path)


@pytest.mark.parametrize(
    "words",
    [
        *(f"export {form} RUN RUN/report.html" for form in ("hf", "gguf", "html", "mlx", "onnx", "adapter")),
        "quantize RUN RUN/sft/checkpoints",
        "import model RUN/rl",
        "distill RUN arithmetic RUN/data/answers.jsonl",
        "tokenizer train --out RUN/tokenizer",
        "eval chat RUN --log RUN/sft/evals.jsonl",
        "eval core RUN --log RUN/sft/evals.jsonl",
        "eval core RUN --out RUN/sft/evals.jsonl",
        "eval chat RUN --out RUN/sft/checkpoints",
        "eval passk RUN --out RUN/data/answers",
        "scaling inference RUN --out RUN/sft",
        "scaling run --out RUN/data/sweep",
        "scaling run --ablate gelu --out RUN/rl/ablation",
        "bench learn base= gelu --out RUN/requests",
        "bench gpu --out RUN/sft/gpu",
        "data inspect x.jsonl --page RUN/report.html",
        "report OTHER --out RUN/report.html",
    ],
)
def test_no_command_writes_its_output_over_a_file_of_a_run(run, words, capsys):
    before = sorted(run.rglob("*"))
    words = words.replace("RUN", str(run)).replace("OTHER", str(run.parent / "other"))
    assert main(words.split()) == 1
    assert "belongs to that run" in capsys.readouterr().err and sorted(run.rglob("*")) == before


def test_a_log_that_is_scored_again_is_of_no_checkpoint(run, capsys):
    assert main(["eval", "core", str(run), "--replay", "log.jsonl"]) == 1
    assert "--replay scores the log log.jsonl, and nothing of" in capsys.readouterr().err


def test_another_model_of_the_same_step_is_not_replaced(tmp_path):
    (tmp_path / "step-00000004").mkdir()
    require_outside_run(tmp_path, step=5)
    with pytest.raises(UserError, match="has step-00000004 already: delete it, or choose another directory"):
        require_outside_run(tmp_path, step=4)


def test_saved_answers_may_be_those_of_a_stage_and_no_other_part_of_a_run(run, tmp_path):
    for place in (run / "sft/exams/step-00000004", run / "rl/exams/step-00000002/core.jsonl", tmp_path / "answers"):
        require_place_of_answers(place)
    for place in (run, run / "sft", run / "exams/../tokenizer", run / "sft/evals.jsonl"):
        with pytest.raises(UserError, match="choose another"):
            require_place_of_answers(place)


def test_nothing_is_written_among_files_that_a_manifest_lists(tmp_path):
    """The tokens that the runs of a sweep share, or a checkpoint that was copied alone."""
    (tmp_path / "manifest.json").write_text("{}")
    for name in ("tokens.bin", "new.html"):
        with pytest.raises(UserError, match=r"manifest\.json lists what is there, and nothing else"):
            require_no_part_of_run(tmp_path / name)
