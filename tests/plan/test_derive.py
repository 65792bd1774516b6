"""Open fields of a recipe are filled by rules, given ones never change, and each filled one names its rule."""

from dataclasses import fields

import pytest

from fledgling.config import Recipe, load_recipe, recipe_names
from fledgling.config.changes import DERIVED_FIELDS, keep_derived
from fledgling.config.scaling_rules import RULE_NUMBERS
from fledgling.config.unused_model_settings import has_no_scalars
from fledgling.plan.derive import derive_known, derive_recipe, derive_stage, list_derived
from fledgling.plan.plan import PlanSettings, make_plan
from fledgling.plan.stage_length import SourceSize


@pytest.mark.parametrize("name", recipe_names())
def test_no_rate_is_left_open_and_none_that_a_recipe_gives_changes(name):
    given = load_recipe(name)
    derived = derive_recipe(given)
    for table in ("optimizer", *given.stages):
        before, after = getattr(given, table), getattr(derived, table)
        for entry in fields(before):
            if getattr(before, entry.name) is not None:
                assert getattr(after, entry.name) == getattr(before, entry.name), f"{table}.{entry.name}"
    assert all(getattr(derived.optimizer, field) is not None for field in DERIVED_FIELDS["optimizer"])
    for stage in derived.stages:
        table = derive_stage(derived, stage, 100, 4096, derived.resolve_model()).stage_config(stage)
        assert table.learning_rate is not None and table.warmup_steps is not None


@pytest.mark.parametrize("name", ["quickstart", "quickstart-gguf", "guessing", "scaling"])
def test_measured_recipes_pin_every_rate(name):
    given = load_recipe(name)
    kinds = {each.name.partition(".")[2] for each in list_derived(given, derive_known(given))}
    not_read = {"scalar_lr"} if has_no_scalars(given) else set()
    assert kinds - not_read <= {"steps", "batch_tokens"}, (
        "a rule would move the bits of a recipe whose figures are in the docs"
    )


@pytest.mark.parametrize(
    "name", sorted({f"{table}.{field}" for table in DERIVED_FIELDS for field in DERIVED_FIELDS[table]})
)
def test_every_derived_field_can_be_pinned(name):
    table, _, field = name.partition(".")
    value = 3 if field in ("warmup_steps", "steps") else 512 if field == "batch_tokens" else 0.7
    stages = '["pretrain","midtrain","sft","dpo","rl"]'
    given = load_recipe("d4-cpu", [f"{name}={value}", f"stages={stages}", "dpo.steps=5"])
    derived = derive_known(given)
    assert getattr(getattr(derived, table), field) == value
    assert name not in {each.name for each in list_derived(given, derived)}


def test_every_filled_field_names_a_rule():
    given = Recipe(stages=("pretrain", "midtrain", "sft", "dpo", "rl"))
    derived = derive_known(given, {name: (200, 4096) for name in given.stages})
    named = {each.name for each in list_derived(given, derived)}
    for table in ("optimizer", *given.stages):
        for field, value in vars(getattr(derived, table)).items():
            if value != getattr(getattr(given, table), field):
                assert f"{table}.{field}" in named
    assert named >= {"optimizer.matrix_lr", "pretrain.steps", "midtrain.learning_rate", "sft.warmup_steps"}
    assert set(RULE_NUMBERS.values()) >= {each.rule for each in list_derived(given, derived)}


def test_the_depth_decides_and_the_plan_says_by_which_rule():
    small, large = (make_plan(load_recipe("d12-1gpu", [f"model.depth={depth}"])) for depth in (6, 12))
    values = [{each["name"]: each["value"] for each in plan["derived"]} for plan in (small, large)]
    assert values[0]["optimizer.embedding_lr"] > values[1]["optimizer.embedding_lr"]
    assert values[0]["pretrain.steps"] < values[1]["pretrain.steps"]
    assert {each["rule"] for each in large["derived"]} >= {2, 3, 4, 5, 6, 7, 9, 10, 13}


BY_EXAMPLES = ["pretrain.batch_tokens=none", "pretrain.examples_per_step=64", "pretrain.steps=1000", "sft.steps=100"]
BY_EXAMPLES += ["sft.batch_tokens=4096", 'stages=["pretrain","sft","rl"]', "sft.learning_rate=none"]


def test_rates_are_those_of_the_batch_that_examples_decide():
    """They were those of the depth's batch, which is not trained."""
    given = load_recipe("d4-cpu", BY_EXAMPLES)
    config, rates = given.resolve_model(), DERIVED_FIELDS["optimizer"]
    before = derive_recipe(given)
    assert all(getattr(before.optimizer, field) is None for field in rates) and before.pretrain.batch_tokens is None
    assert derive_stage(before, "sft", 100, 4096, config).sft.learning_rate is None, "it follows from the batch too"
    assert derive_stage(before, "rl", 100, 0, config).rl.learning_rate is not None
    rows = 8
    trained = derive_stage(before, "pretrain", 1000, rows * config.context, config)
    batch = [f"pretrain.batch_tokens={rows * config.context}", "pretrain.examples_per_step=none"]
    stated = derive_recipe(load_recipe("d4-cpu", [*BY_EXAMPLES, *batch]))
    assert trained.optimizer == stated.optimizer
    assert trained.optimizer != derive_recipe(load_recipe("d4-cpu", [*BY_EXAMPLES, *batch[1:]])).optimizer
    later = [derive_stage(recipe, "sft", 100, 4096, config, rows).sft for recipe in (trained, stated)]
    assert later[0].learning_rate == later[1].learning_rate


def test_a_plan_lists_the_rates_of_a_batch_that_it_knows():
    given = load_recipe("d4-cpu", [*BY_EXAMPLES, "pretrain.mixture={gsm8k = 1.0}"])
    context = given.resolve_model().context
    known = make_plan(given, PlanSettings(sizes={"gsm8k": SourceSize(8000, 0.25)}))
    assert known["stages"]["pretrain"]["rows_per_step"] * context == known["horizon"]["batch_tokens"] == 16 * context
    found = {each["name"]: each["value"] for each in known["derived"]}
    stated = [f"pretrain.batch_tokens={16 * context}", "pretrain.examples_per_step=none"]
    expected = derive_recipe(load_recipe("d4-cpu", [*BY_EXAMPLES, *stated])).optimizer
    assert found["optimizer.matrix_lr"] == expected.matrix_lr and "sft.learning_rate" in found
    unknown = make_plan(load_recipe("d4-cpu", BY_EXAMPLES))
    names = {each["name"] for each in unknown["derived"]}
    assert "pretrain" in unknown["unknown_stages"] and unknown["horizon"]["batch_tokens"] is None
    assert not names & {"optimizer.matrix_lr", "optimizer.weight_decay", "sft.learning_rate"}


def test_a_first_stage_from_random_weights_learns_at_the_full_rates():
    recipe = load_recipe("guessing", ["sft.learning_rate=none"])
    config = recipe.resolve_model()
    assert derive_stage(recipe, "sft", 400, 4096, config).sft.learning_rate == 1.0
    given = load_recipe("guessing", ["sft.learning_rate=none", "run.init_from=elsewhere"])
    assert derive_stage(given, "sft", 400, 4096, config).sft.learning_rate < 1.0
    adapter = load_recipe("guessing", ["sft.learning_rate=none", "run.init_from=elsewhere", "adapter.method=lora"])
    assert derive_stage(adapter, "sft", 400, 4096, config).sft.learning_rate == 1.0, "adapter_lr is its rate"


def test_the_rate_of_an_adapter_follows_the_width_and_is_given_only_with_one():
    def derive_rate(*overrides: str) -> float | None:
        return derive_recipe(load_recipe("d4-cpu", [*overrides])).optimizer.adapter_lr

    assert derive_rate("adapter.method=lora") == 0.01, "at width 256"
    assert derive_rate("adapter.method=lora", "model.width=2000", "model.heads=8") == pytest.approx(5e-4, rel=0.01)
    assert derive_rate("adapter.method=lora", "model.width=64", "model.heads=2") == 0.01, "the power's .076 diverges"
    assert derive_rate("adapter.method=lora", "optimizer.adapter_lr=0.002") == 0.002
    assert derive_rate() is None


def test_a_given_rate_near_0_moves_no_weight_by_its_decay():
    usual, higher, still = (
        derive_recipe(load_recipe("d4-cpu", overrides)).optimizer
        for overrides in ([], ["optimizer.matrix_lr=0.1"], ["optimizer.matrix_lr=1e-9"])
    )
    assert still.weight_decay == usual.weight_decay > higher.weight_decay > 0
    assert higher.weight_decay * 0.1 == pytest.approx(usual.weight_decay * usual.matrix_lr, rel=0.02)


def test_a_resumed_run_keeps_its_derived_values_and_takes_given_ones():
    saved = derive_recipe(load_recipe("d4-cpu"))
    wanted = load_recipe("d4-cpu", ["model.depth=4", "optimizer.head_lr=0.5"])
    kept = keep_derived(saved, wanted)
    assert kept.optimizer.matrix_lr == saved.optimizer.matrix_lr and kept.optimizer.head_lr == 0.5
    assert kept.pretrain == saved.pretrain and kept.sft.learning_rate is None
