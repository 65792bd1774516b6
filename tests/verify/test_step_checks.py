"""What replayed steps show: of older runs, of other rounding, and where rounding samples other answers."""

from pathlib import Path

import pytest

from fledgling.runtime import device
from fledgling.verify import segment, step_checks, steps, verify_run
from fledgling.verify.check import Check
from fledgling.verify.step_checks import keep_known_metrics
from fledgling.verify.steps import Replay, Start, compare_lines


def test_metrics_that_one_version_does_not_write_are_left_out_of_an_older_run_and_named():
    older = [{"step": 1, "loss": 2.0, "rate": 1.0, "tokens": 5}, {"step": 2, "loss": 1.0, "rate": 1.0}]
    again, made = {"step": 2, "loss": 1.0, "lr_multiplier": 1.0, "tokens": 10, "seconds": 1.0}, Check("", "")
    line, kept = keep_known_metrics("sft", older, older[1], again, made)
    assert compare_lines(line, kept, 0.0) == ["tokens None recorded, 10 replayed"], "other lines have it"
    assert "without lr_multiplier, rate, which" in made.notes[0] and "seconds" in kept
    without_loss = [{"step": 1}]
    assert compare_lines(*keep_known_metrics("sft", without_loss, *without_loss, {"step": 1, "loss": 3.0}, made), 0.0)


def make_checks():
    return [Check(name, "values") for name in ("data", "steps", "weights", "scores")]


@pytest.mark.parametrize(("data", "is_problem"), [("b", False), ("a", True)])
def test_rl_that_samples_other_answers_elsewhere_is_a_note_and_another_loss_of_the_same_ones_a_problem(
    monkeypatch, data, is_problem
):
    recorded = {1: {"data": "x", "loss": 1.0}, 2: {"data": "a", "loss": 1.0}, 3: {"data": "c", "loss": 1.0}}
    monkeypatch.setattr(steps, "read_metrics_by_step", lambda run_dir, stage: recorded)
    monkeypatch.setattr(step_checks, "read_newest_state", lambda run_dir, stage: {"history": []})
    for tolerance in (0.02, 0.0):
        checks, result = (
            make_checks(),
            Replay(lines={1: recorded[1], 2: {"data": data, "loss": 9.0}, 3: {"data": "d", "loss": 1.0}}),
        )
        step_checks._compare(Path("run"), Start("rl", 0, None, 3), result, tolerance, checks)
        assert bool(checks[1].problems) == (is_problem or not tolerance)
        assert is_problem or not tolerance or (sorted(result.lines) == [1] and checks[1].checked == 1)


def test_a_compiled_run_is_compared_within_a_tolerance_where_no_compiler_is(copy, monkeypatch):
    """Its own machine, where the compiler alone is gone: no alarm, one line says so; another weight is one."""

    def find_compiled(run_dir, stage, step):
        found = find_segment(run_dir, stage, step)
        return segment.replace(found, compiled=True, native=True if stage == "rl" else None)

    find_segment = step_checks.find_segment
    recipe = steps.read_stage_recipe
    monkeypatch.setattr(step_checks, "find_segment", find_compiled)
    monkeypatch.setattr(steps, "find_segment", find_compiled)
    monkeypatch.setattr(segment, "load_native_library", lambda: None)
    monkeypatch.setattr(device, "find_cxx_compiler", lambda: None)
    monkeypatch.setattr(steps, "read_stage_recipe", lambda *given: compile_if_possible(recipe(*given)))
    is_close = steps.is_close
    monkeypatch.setattr(steps, "is_close", lambda a, b, tolerance: tolerance > 0 and is_close(a, b, tolerance))
    result = verify_run(copy, count=3, seconds=600, seed=1)
    (check,) = (check for check in result["checks"] if check["name"] == "steps replayed")
    problems = [text for each in result["checks"] for text in each["problems"]]
    assert result["holds"] and not problems and check["checked"], problems
    reason = "trained compiled, and there is no compiler here"
    assert sum(reason in note and "within 0.02" in note for note in check["notes"]) == 2  # rl samples natively too


def compile_if_possible(recipe):
    return segment.replace(recipe, run=segment.replace(recipe.run, compile="on"))
