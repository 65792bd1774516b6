"""Each objective and algorithm that can be chosen has its traits, and the settings that they name exist."""

from dataclasses import fields

import pytest

from fledgling.config import DPOConfig, RLConfig, load_recipe
from fledgling.config.unused_settings import explain_unused
from fledgling.config.variants import (
    ALGORITHM_TRAITS,
    CRITIC_SETTINGS,
    OBJECTIVE_SETTINGS,
    OBJECTIVE_TRAITS,
)
from fledgling.train.objectives import OBJECTIVES
from fledgling.train.rl.algorithm import ALGORITHMS


def test_each_objective_and_each_algorithm_has_its_traits_and_its_loss():
    assert set(OBJECTIVE_TRAITS) == set(OBJECTIVES)
    assert set(ALGORITHM_TRAITS) == set(ALGORITHMS)


def test_the_settings_that_are_named_exist():
    assert {each.name for each in fields(DPOConfig)} >= OBJECTIVE_SETTINGS
    assert {each.name for each in fields(RLConfig)} >= CRITIC_SETTINGS


@pytest.mark.parametrize("objective", OBJECTIVE_TRAITS)
def test_a_setting_that_the_objective_does_not_read_is_named(objective):
    recipe = load_recipe("quickstart", [f"dpo.objective={objective}", 'stages=["sft", "dpo"]', "dpo.pairs=p.jsonl"])
    unused = {name for name in OBJECTIVE_SETTINGS if explain_unused(recipe, "dpo", name)}
    assert unused == OBJECTIVE_SETTINGS - OBJECTIVE_TRAITS[objective].settings
