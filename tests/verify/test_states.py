"""What a state counts is compared with the record, with the stage before it, and with replayed steps."""

import json

import pytest

from benchmarks.verify import cover
from fledgling.config import RLConfig
from fledgling.verify.states import check_states, compare_reading, compare_states, count_signs, find_other_sizes
from fledgling.verify.steps import list_starts, replay


def forge(run, place: str, keys: tuple, value) -> str:
    """Changes a value of a checkpoint's state, and all hashes so that they fit."""
    file = run / place / "state.json"
    state = json.loads(file.read_text())
    table = state
    for key in keys[:-1]:
        table = table[key]
    table[keys[-1]] = value
    file.write_text(json.dumps(state))
    cover(run, [file.parent], "forged")
    return f"{file.relative_to(run / place.partition('/')[0] / 'checkpoints')}: {'.'.join(map(str, keys[:2]))} is "


def test_the_states_of_an_honest_run_are_those_of_its_record(run):
    check = check_states(run)
    assert check.problems == [] and check.checked > 6 * 9


@pytest.mark.parametrize(
    ("place", "keys", "value", "source"),
    [
        ("pretrain/checkpoints/step-00000004", ("totals", "tokens"), 7, "the record of step 4 says 1024"),
        ("sft/checkpoints/step-00000006", ("totals", "training_seconds"), 0.5, "the record of step 6 says"),
        ("sft/checkpoints/step-00000004", ("health", "skipped"), 2, "the record of step 4 says 0"),
        ("sft/checkpoints/step-00000004", ("stream", "step"), 2, "the checkpoint is of step 4"),
        ("sft/checkpoints/step-00000006", ("positions", "start"), {}, "pretrain ended at {"),
        ("pretrain/checkpoints/step-00000006", ("positions", "start"), {"a": {"row": 3}}, "a first stage begins at {}"),
        ("rl/checkpoints/step-00000006", ("positions", "now"), {}, "the stage reads no source and began at {"),
        ("rl/checkpoints/step-00000004", ("stream", "kl"), 9.0, "the record of step 4 says 0.04"),
        ("rl/checkpoints/step-00000004", ("stream", "collapse", "reported"), ["kl"], "the rounds of the record give {"),
        ("rl/checkpoints/step-00000004", ("step",), 6, "the name of the checkpoint says 4"),
        ("rl/checkpoints/step-00000004", ("stage",), "sft", "it is in rl"),
    ],
)
def test_a_count_that_the_record_does_not_give_is_named(copy, place, keys, value, source):
    name = forge(copy, place, keys, value)
    assert any(name in line and source in line for line in check_states(copy).problems), check_states(copy).problems


def test_a_checkpoint_of_a_step_that_the_record_lacks_is_named(copy):
    (copy / "rl/checkpoints/step-00000006").rename(copy / "rl/checkpoints/step-00000009")
    forge(copy, "rl/checkpoints/step-00000009", ("step",), 9)
    assert check_states(copy).problems == [
        "rl/step-00000009/state.json: step is 9, the record ends at 6",
    ]


def test_positions_and_counts_that_the_data_do_not_give_are_named(copy):
    start = next(start for start in list_starts(copy) if str(start) == "pretrain step 0")
    result = replay(copy, start, 1, reads_data=True, measures=False)
    assert compare_reading(copy, "pretrain", result, None) == []
    forge(copy, "pretrain/checkpoints/step-00000004", ("positions", "now"), {})
    done = copy / "pretrain/done.json"
    done.write_text(done.read_text().replace('"read": 12', '"read": 13'))
    problems = compare_reading(copy, "pretrain", result, None)
    assert [line.partition(": ")[0] for line in problems] == ["pretrain/step-00000004/state.json", "pretrain/done.json"]
    assert compare_reading(copy, "pretrain", result, 2) == [], "later steps had other settings"
    lines = {1: {"tokens": 256, "targets": 250}, 2: {"tokens": 512, "targets": 1}}
    assert find_other_sizes(lines, [(256, 250), (256, 9)]) == [
        "step 2: targets is 1 in metrics.jsonl, the data give 259"
    ]


def test_states_of_replayed_checkpoints_are_compared_without_clocks_and_within_a_tolerance_without_chance():
    recorded = {"rows_per_step": 4, "totals": {"tokens": 9, "training_seconds": 1.0}, "stream": {"kl": 0.1}}
    replayed = {"rows_per_step": 4, "totals": {"tokens": 9, "training_seconds": 2.0}, "stream": {"kl": 0.2}}
    assert compare_states(recorded, replayed, 0.0) == ["state.json: stream.kl is 0.1, replayed 0.2"]
    assert compare_states(recorded, replayed, 0.02) == []
    replayed["rows_per_step"] = 8
    assert compare_states(recorded, replayed, 0.02) == ["state.json: rows_per_step is 4, replayed 8"]


def test_signs_of_collapse_are_counted_once_a_round_and_not_from_what_is_no_number():
    lines = {step: {"distinct": 0.01} for step in range(1, 7)}
    state = count_signs(RLConfig(minibatches=2), 6, lines)
    assert state["streaks"]["identical"] == 3 and state["reported"] == ["identical"]
    lines[3]["distinct"] = None
    assert count_signs(RLConfig(minibatches=2), 6, lines) is None
