"""What a changed setting does when a run is resumed: every field has a rule, and the rules are applied."""

from dataclasses import fields, replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from fledgling.config import STAGES, Recipe, RLConfig, load_recipe
from fledgling.config.changes import (
    STAGE_RULES,
    TABLE_RULES,
    TOP_RULES,
    compare_recipes,
    find_rule,
    format_changes,
    keep_ignored,
    list_fields,
)
from fledgling.train.rl.rollout_stream import RolloutStream

SAVED = load_recipe("quickstart")


def outcomes(stage: str, *overrides: str, done=(), is_resumed: bool = True, step: int = 5) -> dict[str, str]:
    wanted = load_recipe("quickstart", overrides)
    changed = compare_recipes(SAVED, wanted, stage, done, is_resumed, step, 1024)
    return {setting.name: setting.outcome for setting in changed}


def test_every_field_of_a_recipe_has_a_rule_and_every_rule_a_field():
    for table, field, _ in list_fields(Recipe()):
        rule = find_rule(table, field)  # a new field fails here: decide what happens when it changes
        assert rule.outcome in ("takes effect", "rejected", "ignored") and rule.reason, f"{table}.{field}"
    ruled = {("", field) for field in TOP_RULES}
    ruled |= {(table, field) for table, rules in {**TABLE_RULES, **STAGE_RULES}.items() for field in rules}
    assert ruled == {(table, field) for table, field, _ in list_fields(Recipe())}
    assert set(STAGE_RULES) == set(STAGES)
    written = {entry.name for entry in fields(Recipe) if not entry.metadata.get("internal")}
    assert written == {table for table, _ in ruled if table} | set(TOP_RULES)


def test_the_same_recipe_has_no_changes_wherever_its_run_is():
    assert outcomes("pretrain") == {} == outcomes("pretrain", "run.out=moved")


@pytest.mark.parametrize(
    ("override", "when_resumed", "at_the_next_stage"),
    [
        ("model.depth=2", "rejected", "rejected"),
        ("model.context=128", "rejected", "rejected"),
        ("tokenizer.vocab_size=2048", "rejected", "rejected"),
        ("tokenizer.max_characters=9", "ignored", "ignored"),
        ("seed=5", "rejected", "rejected"),
        ("optimizer.matrix_optimizer=adamw", "rejected", "takes effect"),
        ("optimizer.matrix_lr=0.5", "takes effect", "takes effect"),
        ("sft.batch_tokens=8192", "rejected", "takes effect"),
        ("sft.mixture={embedded=1.0}", "rejected", "takes effect"),
        ("sft.steps=9", "takes effect", "takes effect"),
        ("sft.steps=5", "rejected", "takes effect"),
        ("sft.micro_batch_size=64", "ignored", "takes effect"),
        ("rl.steps=3", "takes effect", "takes effect"),
        ("pretrain.steps=9", "ignored", "ignored"),
        ("run.init_from=elsewhere", "ignored", "ignored"),
        ("run.dtype=float32", "takes effect", "takes effect"),
    ],
)
def test_what_a_changed_setting_of_sft_does(override, when_resumed, at_the_next_stage):
    name = override.partition("=")[0]
    done = ("pretrain", "midtrain")
    assert outcomes("sft", override, done=done) == {name: when_resumed}
    assert outcomes("sft", override, done=done, is_resumed=False) == {name: at_the_next_stage}


def test_the_order_of_a_mixture_is_part_of_it():
    items = list(SAVED.sft.mixture.items())
    assert len(items) > 1
    turned = replace(SAVED, sft=replace(SAVED.sft, mixture=dict(items[::-1])))
    changed = compare_recipes(SAVED, turned, "sft", (), True, 5, 1024)
    assert [(setting.name, setting.outcome) for setting in changed] == [("sft.mixture", "rejected")]


def test_a_value_that_is_pinned_to_what_it_was_derived_to_is_no_change():
    width = SAVED.model.resolve(1024).width
    assert outcomes("pretrain", f"model.width={width}") == {}
    assert outcomes("pretrain", "model.depth=3") == {"model.depth": "rejected"}  # not the width that follows from it


def test_smaller_micro_batches_take_effect_and_larger_ones_do_not():
    small = replace(SAVED, sft=replace(SAVED.sft, micro_batch_size=4))
    for size, outcome in ((2, "takes effect"), (8, "ignored")):
        wanted = replace(SAVED, sft=replace(SAVED.sft, micro_batch_size=size))
        assert [c.outcome for c in compare_recipes(small, wanted, "sft", (), True, 5, 1024)] == [outcome]


def test_a_kl_weight_that_has_adapted_to_its_target_is_kept():
    assert outcomes("rl", "rl.kl_weight=0.7") == {"rl.kl_weight": "takes effect"}
    assert outcomes("rl", "rl.kl_weight=0.7", "rl.kl_target=0.1")["rl.kl_weight"] == "ignored"
    state = {"step": 4, "kl": 0.3, "held": [], "last": {}}
    for target, weight in ((None, 0.7), (0.1, 0.3)):
        stream = object.__new__(RolloutStream)
        stream.config, stream.kl_weight = RLConfig(kl_weight=0.7, kl_target=target), 0.7
        stream.collapse_monitor = stream.sampler = Mock()
        stream.load_state_dict(state)
        assert stream.kl_weight == weight


def test_the_recipe_that_runs_has_the_saved_values_of_ignored_fields():
    overrides = ["pretrain.steps=9", "sft.learning_rate=0.7", "tokenizer.max_characters=9"]
    wanted = load_recipe("quickstart", overrides)
    changed = compare_recipes(SAVED, wanted, "sft", ("pretrain",), True, 5, 1024)
    assert keep_ignored(SAVED, wanted, changed) == load_recipe("quickstart", overrides[1:2])
    table = format_changes(changed)
    assert table[0].split() == ["setting", "saved", "wanted", "what", "happens"] and len(table) == 4
    assert any("sft.learning_rate" in line and "0.7" in line and "takes effect" in line for line in table)
    assert any("pretrain.steps" in line and "ignored: pretrain is done" in line for line in table)


def test_the_page_names_every_field_that_is_not_free():
    page = (Path(__file__).parents[2] / "docs" / "runs.md").read_text(encoding="utf-8")
    for table, field, _ in list_fields(Recipe()):
        if table != "model" and find_rule(table, field).outcome != "takes effect" and field != "vocab_size":
            assert f"`{field}`" in page or f"`{table}.{field}`" in page, f"{table}.{field}"


@pytest.mark.parametrize(
    ("override", "before", "after"),
    [
        ("pretrain.mixture.spelling=0.3", f"{{spelling = {SAVED.pretrain.mixture['spelling']}}}", "{spelling = 0.3}"),
        ("pretrain.mixture.other=0.3", "{}", "{other = 0.3}"),
        (f"run.init_from={'/very' * 12}/long", "not set", None),
    ],
)
def test_the_table_shows_what_differs(override, before, after):
    changed = compare_recipes(SAVED, load_recipe("quickstart", [override]), "pretrain", (), True, 5, 1024)
    assert changed[0].saved == before and changed[0].wanted == (after or changed[0].wanted)
    assert len(changed[0].wanted) <= 40


def test_long_texts_are_shown_from_where_they_differ():
    one, two = (replace(SAVED, name=f"{'the same beginning ' * 5}{end}") for end in ("one", "two"))
    changed = compare_recipes(one, two, "pretrain", (), True, 5, 1024)[0]
    assert changed.saved.endswith('one"') and changed.wanted.endswith('two"') and changed.saved.startswith("...")
