"""Prompt templates: expansion of patterns, macros, and decoration with openings and closings."""

import itertools
import random

from fledgling.tasks.skills import arithmetic, counting, spelling
from fledgling.tasks.skills.templates import (
    capitalize_first,
    decorate_template,
    expand_patterns,
    expand_weights,
    list_words,
    load_templates,
    sample_story_words,
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


def test_the_words_of_a_story_fill_its_slots_and_two_persons_differ():
    draw, boxes = random.Random(0), {tuple(pair.split()) for pair in list_words("boxes")}
    for _ in range(200):
        words = sample_story_words(draw)
        assert words.keys() == {"person", "other", "place", "box", "boxes", "day", "thing"} and all(words.values())
        assert words["person"] != words["other"] and (words["box"], words["boxes"]) in boxes
    assert "my aunt" in list_words("persons") and "apples" in list_words("plural_nouns")


def test_two_thirds_of_the_prompts_are_drawn_from_the_varied_wordings():
    draw = random.Random(0)
    for module, varied in (
        (arithmetic, [*itertools.chain(*load_templates("arithmetic")["train"]["varied"].values())]),
        (spelling, load_templates("spelling")["train"]["varied"]),
        (counting, load_templates("counting")["train"]["varied"]),
    ):
        own = set(expand_patterns(*varied))
        drawn = [module.make_task().sample_question(draw, TRAIN, False, None).facts["wording"] for _ in range(600)]
        share = sum(wording in own for wording in drawn) / len(drawn)
        assert 0.6 < share < 0.8, f"{module}: some varied wordings are composed ones too"


def test_macros_are_replaced_and_weights_repeat():
    table = load_templates("spelling")
    assert "macros" not in table and all("<" not in pattern for pattern in table["train"]["requests"])
    assert table["train"]["requests"][0].endswith("[{w}|{w}|the word {w}|this word: {w}]")
    assert expand_weights({"{}": 2, "'{}'": 1}) == ("{}", "{}", "'{}'")
