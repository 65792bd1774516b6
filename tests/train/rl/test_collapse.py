"""The signs of collapse are counted over a resume: a sign that lasts is logged once."""

import json

from fledgling.train.rl.collapse import MAX_COLLAPSED_ROUNDS, CollapseMonitor


def test_a_streak_continues_after_a_resume_and_is_logged_once():
    lines, state = [], {}
    for _ in range(2 * MAX_COLLAPSED_ROUNDS):
        monitor = CollapseMonitor(lines.append)
        monitor.load_state_dict(state)
        monitor.update({"entropy": 0.0})
        state = json.loads(json.dumps(monitor.state_dict()))
    assert len(lines) == 1 and "entropy" in lines[0]
