"""A state whose values are of another kind than the program writes is named in one line."""

import pytest
import torch

from fledgling.config import UserError
from fledgling.record import checkpoint
from fledgling.record.state_shape import find_state_corruption, require_sound_state

ENTRY = {"after_step": 0, "recipe": "", "machine": {}, "files": {"rl.rewards": "ab"}}
SOUND = {
    "step": 4,
    "ranks": 1,
    "recipe": "",
    "history": [ENTRY, {**ENTRY, "files": None}],
    "data": {"text": {"digest": "ab", "directories": ["text-1"]}, "own": {}},
    "parent": None,
}


@pytest.mark.parametrize("state", [{}, SOUND, {**SOUND, "history": []}, {"name": "imported", "positions": {}}])
def test_what_a_version_does_not_write_is_not_missed(state):
    assert find_state_corruption(state) == ""


CORRUPT = [
    ({"history": "x"}, "history is 'x', expected a list"),
    ({"history": [{"after_step": "a"}]}, "history[0] is {'after_step': 'a'}, expected after_step, recipe, machine"),
    ({"history": [ENTRY, {**ENTRY, "after_step": "a"}]}, "history[1].after_step is 'a', expected a number of steps"),
    ({"history": [{**ENTRY, "files": [1]}]}, "history[0].files is [1], expected a table"),
    ({"history": [{**ENTRY, "files": {"a": 1}}]}, "history[0].files has 1, expected digests"),
    ({"history": [{**ENTRY, "recipe": 5}]}, "history[0].recipe is 5, expected a recipe as text"),
    ({"data": [1]}, "data is [1], expected a table"),
    ({"data": {"rl.rewards": 3}}, 'data["rl.rewards"] is 3, expected a table'),
    ({"data": {"rl.rewards": {"digest": 3}}}, 'data["rl.rewards"].digest is 3, expected a digest'),
    ({"step": True}, "step is True, expected a number of steps"),
    ({"ranks": [1]}, "ranks is [1], expected a number of processes"),
    ({"horizon": 3}, "horizon is 3, expected a table"),
]


@pytest.mark.parametrize(("values", "expected"), CORRUPT)
def test_a_value_of_another_kind_is_named(values, expected, tmp_path):
    assert find_state_corruption(SOUND | values) == expected
    path = checkpoint.save_checkpoint(tmp_path, 4, {"model": {"w": torch.zeros(1)}}, SOUND | values)
    with pytest.raises(UserError, match=r"in state\.json"):
        require_sound_state(path)
