"""The stage whose weights are used is replayed first, each in its turn, and a verdict says what was not reached."""

import random
from pathlib import Path

from fledgling.verify import steps
from fledgling.verify.replay_order import Reached, order_starts
from fledgling.verify.steps import Replay, Start

STARTS = [
    Start(stage, step, Path("c") if step else None, min(step + 4, 8))
    for stage in ("pretrain", "sft", "rl")
    for step in (0, 4, 8)
]
DRAWN = {start: [1, 2] for start in STARTS if start.step < 8}


def test_the_last_stage_comes_first_and_the_others_in_turns():
    order = [(start.stage, start.step) for start in order_starts(STARTS, DRAWN, random.Random(1))]
    assert order[:4] == [("rl", 4), ("rl", 8), ("rl", 0), ("sft", 0)]
    assert order[4:] == [("pretrain", 0), ("sft", 8), ("pretrain", 8), ("sft", 4), ("pretrain", 4)]
    assert order_starts([], {}, random.Random(1)) == []
    only_ends = [start for start in STARTS if start.step == 8]
    assert [start.stage for start in order_starts(only_ends, {}, random.Random(1))] == ["rl", "sft", "pretrain"]


def test_a_verdict_counts_the_drawn_steps_and_names_stages_without_any():
    reached = Reached({"pretrain": 8, "sft": 8, "rl": 8}, {"pretrain", "sft", "rl"}, DRAWN)
    reached.add(STARTS[0], Replay(lines={1: {}, 2: {}}), 3.0)
    assert reached.describe_shortfall() == ", 2 of 12 drawn steps replayed, none of sft, rl"
    for start in DRAWN:
        reached.add(start, Replay(lines={start.step + 1: {}, start.step + 2: {}}), 2.0)
    assert reached.describe_shortfall() == "" and not any("fit into the time" in note for note in reached.list_notes())
    assert reached.has_time(1.0) and not reached.has_time(0.9) and not reached.has_time(-1.0)


def test_a_start_stops_at_its_time_after_its_first_step(run, monkeypatch):
    start = next(start for start in steps.list_starts(run) if (start.stage, start.step) == ("sft", 0))
    result = steps.replay(run, start, 4, True, False, stop_at=0.0)
    assert sorted(result.lines) == [1] and not result.has_read_all and result.data == []
