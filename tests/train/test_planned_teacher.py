"""The teacher that plans count: only one that a stage learns from has to be there."""

from dataclasses import replace

import pytest

from fledgling.config import UserError, load_recipe
from fledgling.train.planned_teacher import find_teacher


def test_only_a_teacher_that_a_stage_learns_from_has_to_be_there(tmp_path):
    recipe = load_recipe("quickstart", [f"distill.teacher={tmp_path / 'gone'}", 'distill.stages=["sft"]'])
    with pytest.raises(UserError, match=r"distill\.teacher"):
        find_teacher(recipe, tmp_path)
    assert find_teacher(replace(recipe, stages=("pretrain",)), tmp_path) is None
    assert find_teacher(load_recipe("quickstart"), tmp_path) is None
