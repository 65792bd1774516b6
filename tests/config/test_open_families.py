"""Presets of open models' families: each is a model, names only fields of a model, and differs from the others."""

import pytest

from fledgling.config import ModelConfig
from fledgling.config.open_families import LLAMA, OPEN_FAMILIES

SMALL = {"vocab_size": 32, "depth": 2, "width": 32, "heads": 2, "context": 8}


@pytest.mark.parametrize("family", OPEN_FAMILIES)
def test_a_family_gives_a_model_its_values(family):
    config = ModelConfig(family=family, **SMALL)
    values = {name: value for name, value in OPEN_FAMILIES[family].items() if value is not None}
    assert {name: getattr(config, name) for name in values} == values
    assert ModelConfig(family=family, **SMALL, norm_eps=0.25).norm_eps == 0.25  # what a recipe sets wins


def test_every_family_states_every_value():
    assert {frozenset(values) for values in OPEN_FAMILIES.values()} == {frozenset(LLAMA)}
