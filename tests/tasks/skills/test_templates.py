"""Prompt templates: expansion of patterns, macros, and decoration with openings and closings."""

import random

from fledgling.tasks.skills import spelling
from fledgling.tasks.skills.templates import (
    capitalize_first,
    decorate_template,
    expand_patterns,
    expand_weights,
    load_templates,
)
from fledgling.tasks.task import TRAIN
from tests.tasks.skills.composition import is_composition, normalize_template


def test_patterns_expand_in_order_and_nest():
    assert expand_patterns("[a|b] c", "x[|y]") == ("a c", "b c", "x", "xy")
    assert expand_patterns("[a|[b|c] d]") == ("a", "b d", "c d")
    assert capitalize_first("{a} and") == "{a} and" and capitalize_first("what") == "What"


def test_a_decorated_core_is_a_composition():
    rng = random.Random(0)
    cores = spelling.list_templates(TRAIN)
    normalized = {normalize_template(core) for core in cores}
    for _ in range(300):
        decorated = decorate_template(rng.choice(cores), rng)
        assert is_composition(decorated, normalized), decorated
        assert not is_composition("my aunt collects " + decorated, normalized)


def test_macros_are_replaced_and_weights_repeat():
    table = load_templates("spelling")
    assert "macros" not in table and all("<" not in pattern for pattern in table["train"]["requests"])
    assert table["train"]["requests"][0].endswith("[{w}|{w}|the word {w}|this word: {w}]")
    assert expand_weights({"{}": 2, "'{}'": 1}) == ("{}", "{}", "'{}'")
