"""A budget becomes a run: the time that it takes is the budget, and what cannot be is rejected in one line."""

import random
from dataclasses import replace

import pytest

from fledgling.config import PHASES, UserError, load_recipe
from fledgling.config.unused_settings import describe_unused
from fledgling.plan.amount import Budget
from fledgling.plan.budget import TARGET, TrainingSpeed, choose_run, fit_phases, scale_batch, speed_at, with_depth
from fledgling.plan.comparable_runs import get_size
from fledgling.plan.flops import training_flops_per_token
from fledgling.plan.hardware import find_device
from fledgling.plan.plan import PlanSettings, make_plan
from fledgling.plan.shifted_loss import ShiftedLoss
from fledgling.plan.stage_length import SourceSize
from fledgling.plan.stage_seconds import EVALUATIONS, StageContent, total_seconds
from fledgling.record.forecast_names import BITS
from tests.plan.past_run_samples import TRUTH, make_run

QUICKSTART = load_recipe("quickstart", ["model.preset=nanochat-2025"])  # whose sizes the tests below state
CPU = find_device("cpu-bf16")
CONTENTS = dict.fromkeys(QUICKSTART.stages, StageContent(5, 0.8))


def choose(minutes, tokens_per_second=5000.0, recipe=QUICKSTART, runs=(), **options):
    per_token = training_flops_per_token(QUICKSTART.resolve_model())
    speeds = [TrainingSpeed(tokens_per_second * per_token, per_token, "measured here")]
    return choose_run(
        recipe, Budget(60 * minutes, f"--minutes {minutes:g}"), speeds, CPU, 1, runs, contents=CONTENTS, **options
    )


@pytest.mark.parametrize("minutes", [3, 12, 480])
@pytest.mark.parametrize("tokens_per_second", [2500.0, 10_000.0])
def test_the_whole_run_fits_into_the_budget(minutes, tokens_per_second):
    choice = choose(minutes, tokens_per_second, is_pinned=True)
    assert 0.93 * TARGET * 60 * minutes <= total_seconds(choice.stages) <= 60 * minutes
    assert choice.planned.seconds == pytest.approx(total_seconds(choice.stages))
    assert choice.stages[0].name == "start" and choice.stages[-1].name == "report"
    for name in choice.recipe.stages:
        table = choice.recipe.stage_config(name)
        assert table.steps >= 5 and table.warmup_steps <= max(1, table.steps // 5)


def test_a_small_budget_leaves_out_what_costs_much_and_a_large_one_makes_all():
    small, large = choose(1.5, is_pinned=True), choose(60, is_pinned=True)
    assert EVALUATIONS.index(small.evaluations) > EVALUATIONS.index(large.evaluations) == 0
    assert not small.evaluations.keeps("pretrain", "compression", False)
    assert small.evaluations.keeps("pretrain", "bits_per_byte", False) and small.evaluations.keeps("rl", "chat", True)
    assert large.recipe.stages == QUICKSTART.stages


def test_stages_keep_their_proportions():
    recipe = choose(30, is_pinned=True).recipe
    shares = {name: recipe.stage_config(name).steps / QUICKSTART.stage_config(name).steps for name in recipe.stages}
    assert max(shares.values()) / min(shares.values()) < 1.1, shares


def test_a_teacher_takes_steps_from_the_stage_that_learns_from_it():
    distilled = load_recipe(
        "quickstart", ["model.preset=nanochat-2025", "distill.teacher=teacher", 'distill.stages=["sft"]']
    )
    teacher = replace(QUICKSTART.resolve_model(), depth=12, width=768, heads=6, kv_heads=6)
    alone, taught = (choose(12, recipe=distilled, is_pinned=True, teacher=each) for each in (None, teacher))
    assert taught.recipe.sft.steps < 0.7 * alone.recipe.sft.steps
    assert taught.planned.seconds == pytest.approx(alone.planned.seconds, rel=0.05)
    assert taught.planned.memory > 1.2 * alone.planned.memory


def test_heads_of_another_depth_are_no_wider_than_the_recipe_states():
    stated = replace(QUICKSTART, model=replace(QUICKSTART.model, heads=4))  # of 64
    found = {depth: with_depth(stated, depth).resolve_model() for depth in (1, 3, 12)}
    assert {depth: config.heads for depth, config in found.items()} == {1: 1, 3: 3, 12: 12}
    assert found[12].kv_heads == 12 and {config.head_width for config in found.values()} == {64}
    wide = replace(stated, model=replace(stated.model, heads=1))
    assert with_depth(wide, 12).resolve_model().heads == 6, "those of 256 are wider than usual"


def test_phases_that_are_counted_in_steps_keep_their_share_of_a_stage_that_is_shortened():
    phases = {"batch_warmup_steps": 100, "context_warmup_steps": 200, "mtp_targets": 1, "mtp_decay_steps": 600}
    given = replace(QUICKSTART, pretrain=replace(QUICKSTART.pretrain, **phases))
    for minutes in (6, 60):
        table = choose(minutes, recipe=given, is_pinned=True).recipe.pretrain
        share = min(1.0, table.steps / given.pretrain.steps)
        for name in PHASES:
            assert getattr(table, name) == pytest.approx(share * phases[name], abs=1), (minutes, name)
        assert table.mtp_targets == 1 and table.warmup_steps == min(20, table.steps // 10)
    assert fit_phases(QUICKSTART.rl, 30, 0.5) == {"warmup_steps": min(QUICKSTART.rl.warmup_steps, 3)}


def test_more_time_gives_a_deeper_model_by_the_fitted_law_and_a_pinned_depth_stays():
    draw = random.Random(0)
    runs = [make_run(draw, 0.003) for _ in range(20)]
    depths = [choose(minutes, runs=runs).recipe.model.depth for minutes in (3, 60, 1200)]
    assert depths == sorted(depths) and depths[0] < depths[-1]
    assert choose(1200, runs=runs, is_pinned=True).recipe.model.depth == 4
    assert "20 past runs" in choose(3, runs=runs).law


def test_a_budget_names_the_settings_that_give_a_length_which_only_the_data_show():
    epochs = replace(QUICKSTART.pretrain, steps=None, num_epochs=2.0)
    with pytest.raises(UserError, match=r"--minutes 12: the length of pretrain is not known .*; set pretrain\.steps$"):
        choose(12, recipe=replace(QUICKSTART, pretrain=epochs))
    examples = replace(QUICKSTART.pretrain, batch_tokens=None, examples_per_step=4)
    with pytest.raises(UserError, match=r"; set pretrain\.batch_tokens instead of examples_per_step$"):
        choose(12, recipe=replace(QUICKSTART, pretrain=examples))


def test_a_micro_batch_that_does_not_divide_an_open_batch_ends_no_search():
    """A depth whose batch has 16 rows was rejected for micro-batches of 6, and all deeper ones with it."""
    draw = random.Random(0)
    runs = [make_run(draw, 0.003) for _ in range(20)]
    open_batch = replace(QUICKSTART.pretrain, batch_tokens=None, micro_batch_size=None)
    free, pinned = (
        choose(1200, runs=runs, recipe=replace(QUICKSTART, pretrain=replace(open_batch, micro_batch_size=size)))
        for size in (None, 6)
    )
    assert pinned.recipe.model.depth == free.recipe.model.depth > 4


def test_time_that_earlier_sessions_spent_is_not_planned_again():
    assert total_seconds(choose(6, spent=100.0, is_pinned=True).stages) <= 260


@pytest.mark.parametrize("minutes", [0.01, 0.1, 0.3])
def test_a_budget_in_which_nothing_can_be_learned_is_rejected_in_one_line(minutes):
    with pytest.raises(
        UserError,
        match=r"nothing can be learned in \d+ s: .* expected (a smaller model .*or )?at least --minutes [\d.]+",
    ) as error:
        choose(minutes, 2500.0)
    assert "\n" not in str(error.value) and "measuring" not in str(error.value)
    least = float(str(error.value).rpartition(" ")[2])
    assert choose(1.02 * least, 2500.0).recipe.pretrain.steps >= 20, "what it asks for is enough"


def test_the_time_of_measuring_is_named_apart_from_that_of_the_run():
    with pytest.raises(UserError, match="measuring this machine takes 50 s, start, text, tokenizer and one") as error:
        choose(1, 2500.0, spent=50.0)
    assert "a smaller model" not in str(error.value), "no model is small enough"
    with pytest.raises(UserError, match="expected a smaller model"):
        choose(6.5, 300.0, is_pinned=True)
    least, given = (float(str(each).rpartition(" ")[2]) for each in (error.value, "--minutes 1"))
    assert choose(1.02 * least, 2500.0, spent=50.0).recipe.pretrain.steps >= 20 and least > given


def test_what_a_left_out_stage_has_stated_is_not_listed_as_unread():
    small = choose(1.5, is_pinned=True).recipe
    left_out = set(QUICKSTART.stages) - set(small.stages)
    assert left_out and any(name.partition(".")[0] in left_out for name in QUICKSTART.stated)
    adapted = replace(QUICKSTART.adapter, method="lora", stages=("sft", "dpo"))
    assert choose(0.95, recipe=replace(QUICKSTART, adapter=adapted), is_pinned=True).recipe.adapter.method == "none"
    assert not [line for line in describe_unused(small) if line.startswith(tuple(f"[{name}]" for name in left_out))]


def test_a_speed_between_two_measured_sizes_lies_between_theirs():
    speeds = [TrainingSpeed(1e11, 1e6, "a"), TrainingSpeed(4e11, 1e8, "b")]
    assert speed_at(speeds, 1e7).flops == pytest.approx(2e11)
    assert speed_at(speeds, 1e9).flops == 4e11 and speed_at(speeds, 1e5).flops == 1e11


def test_a_pinned_batch_grows_with_the_tokens_and_keeps_their_number():
    table = QUICKSTART.pretrain
    assert scale_batch(table, 300, 0.3) == (300, {})
    steps, batch = scale_batch(table, 90_000, 100)
    assert steps * batch["batch_tokens"] == 90_000 * 4096 and batch["batch_tokens"] in (4 * 4096, 8 * 4096)
    assert scale_batch(replace(table, batch_tokens=None), 90_000, 100) == (90_000, {})


def true_loss(choice):
    parameters, tokens = get_size(choice.planned, BITS)
    return TRUTH.loss(parameters, tokens / 2)  # `make_run` trains as long before the end of pretraining as after it


@pytest.mark.parametrize("minutes", [3, 12, 1200])
def test_with_few_and_noisy_past_runs_the_choice_is_seldom_worse_than_the_recipes_depth(minutes):
    """A law of a few small runs is asked far beyond them here: what it finds by chance must not cost much."""
    draw, pinned = random.Random(minutes), choose(minutes, is_pinned=True)
    losses = []
    for count in [4, 6, 8] * 3:
        sizes = [(draw.choice([786_534, 3_932_458]), 10 ** draw.uniform(5.3, 6.0)) for _ in range(count)]
        past = [make_run(draw, 0.03, *size) for size in sizes]
        losses.append(true_loss(choose(minutes, runs=past)) / true_loss(pinned))
    assert max(losses) < 1.06 and sum(loss > 1.005 for loss in losses) <= 2 and sum(losses) < len(losses), losses
    assert choose(minutes, runs=[]).recipe.model.depth == 4 and "none: 0 past runs" in choose(minutes).law


def test_where_the_recipes_depth_would_read_far_less_than_every_past_run_it_has_no_precedence():
    """On a machine that others use too, three minutes became 36 steps of four layers, on which the fits disagreed."""
    draw = random.Random(1)
    past = [
        make_run(draw, 0.02, parameters, tokens)
        for parameters in (786_534, 1_917_160, 3_932_458)
        for tokens in (4e6, 8e6)
    ]
    short = choose(3, 1500.0, runs=past)
    assert short.recipe.model.depth <= 2 and true_loss(short) < 0.8 * true_loss(choose(3, 1500.0, is_pinned=True))
    assert choose(15, 5000.0, runs=past).recipe.model.depth == 3, "between the past runs"


def test_with_later_stages_the_depth_is_that_of_the_best_model_at_the_end():
    """A small model reads the most text, and learns the least of what comes after it."""
    draw = random.Random(0)
    sizes = {1: 245_828, 2: 786_534, 3: 1_917_160, 4: 3_932_458}
    past = [make_run(draw, 0.0, parameters, tokens) for parameters in sizes.values() for tokens in (4e5, 2e6, 8e6)]
    kept = choose(12, runs=past)
    small_forget = ShiftedLoss(0.4, 3e10, 1.3e10)
    ends = [replace(run, measured={**run.measured, BITS: small_forget.loss(*get_size(run, BITS))}) for run in past]
    deeper = choose(12, runs=ends)
    assert kept.recipe.model.depth < deeper.recipe.model.depth and "at the end" in deeper.law
    alone = choose(12, runs=ends, recipe=replace(QUICKSTART, stages=("pretrain",)))
    assert alone.recipe.model.depth == kept.recipe.model.depth and "after pretraining" in alone.law


def test_the_memory_of_a_budget_is_that_of_the_batch_that_has_grown():
    choice = choose(480, is_pinned=True)
    grown = choice.recipe.pretrain.batch_tokens
    recipe = replace(choice.recipe, pretrain=replace(choice.recipe.pretrain, micro_batch_size=None))
    assert grown > QUICKSTART.pretrain.batch_tokens
    open_rows = replace(QUICKSTART, pretrain=replace(QUICKSTART.pretrain, micro_batch_size=None))
    choice = choose(480, recipe=open_rows, is_pinned=True)
    planned = make_plan(recipe, PlanSettings(device=CPU))["stages"]["pretrain"]["memory"]
    before = make_plan(open_rows, PlanSettings(device=CPU))["stages"]["pretrain"]["memory"]
    assert choice.planned.memory >= planned > before


def test_a_stage_whose_data_are_few_is_made_and_not_left_out():
    recipe = replace(QUICKSTART, stages=("pretrain", "sft"), sft=replace(QUICKSTART.sft, steps=None, num_epochs=1.0))
    conversations = {"chat:few.jsonl": SourceSize(240, 1.0)}  # 15 steps of 16 rows
    recipe = replace(recipe, sft=replace(recipe.sft, mixture={"chat:few.jsonl": 1.0}))
    choice = choose(60, recipe=recipe, is_pinned=True, sizes=conversations)
    assert choice.recipe.stages == ("pretrain", "sft") and 1 <= choice.recipe.sft.steps <= 15
