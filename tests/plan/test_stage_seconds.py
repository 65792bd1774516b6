"""The seconds of a run that are not of its steps: they follow the processor, not the FLOP/s of a small model."""

from dataclasses import replace
from functools import partial

import pytest

from fledgling.config import UserError, load_recipe
from fledgling.plan import core_speed
from fledgling.plan.amount import Budget
from fledgling.plan.budget import TrainingSpeed, choose_run
from fledgling.plan.flops import ANSWER_SHARE, training_flops, training_flops_per_token
from fledgling.plan.hardware import find_device
from fledgling.plan.stage_seconds import (
    ACCELERATOR_SHARE,
    CONVERSATION_TOKENS,
    QUESTION_SECONDS,
    REFERENCE_FLOPS,
    SLOWEST,
    TEXT_SECONDS,
    TRAINED_TEXT_SECONDS,
    CoreTime,
    OwnText,
    StageContent,
    estimate_core_time,
    evaluation_seconds,
    total_seconds,
)
from tests.fast_run import write_recipe

SMALL = 470_784  # FLOPs of a token of the smallest recipe's model


@pytest.fixture
def recipe(tmp_path):
    stages = ['stages=["pretrain", "sft"]', "pretrain.steps=60", "sft.steps=60"]
    return load_recipe(write_recipe(tmp_path), stages)


def choose(recipe, seconds, share, cores=2, contents=None):
    per_token = training_flops_per_token(recipe.resolve_model())
    speed = TrainingSpeed(20_000.0 * per_token, per_token, "measured here", share, cores)  # as on one core of a Xeon
    return choose_run(
        recipe, Budget(seconds, f"--minutes {seconds / 60:g}"), [speed], find_device("cpu"), 1, [], contents=contents
    )


def test_a_small_run_keeps_its_stages_in_a_budget_of_half_a_minute(recipe):
    """By its FLOP/s, a fiftieth of a large model's, starts and report would take 48 s and a stage would be dropped."""
    choice = choose(recipe, 30.0, 1.0)
    assert choice.recipe.stages == ("pretrain", "sft") and choice.recipe.sft.steps > 60
    assert sum(stage.fixed_seconds for stage in choice.stages) < 10
    assert 25 <= total_seconds(choice.stages) <= 30


def test_the_fixed_part_follows_the_measured_core_and_not_the_speed_of_training(recipe):
    def fixed(share):
        return sum(stage.start for stage in choose(recipe, 120.0, share).stages if stage.name == "start")

    assert fixed(2.0) == pytest.approx(2 * fixed(1.0)) and fixed(100.0) == SLOWEST * fixed(1.0)
    one, two = (estimate_core_time("cpu", 1e9, SMALL, 1.0, cores) for cores in (1, 2))
    assert one.share == two.share and one.parallel == 2 * two.parallel


def test_without_a_measured_core_a_small_model_is_not_taken_for_a_slow_processor():
    assert estimate_core_time("cpu", REFERENCE_FLOPS, 23_592_960).share == 1
    assert estimate_core_time("cpu", REFERENCE_FLOPS / 2, 1e9).share == 2
    assert estimate_core_time("cpu", 20_000.0 * SMALL, SMALL).share < 0.3, "as many tokens a second as the reference"
    assert estimate_core_time("cuda", 1e14, 1e9).share == ACCELERATOR_SHARE


def test_a_core_that_needs_three_times_the_reference_has_a_share_of_three(monkeypatch):
    monkeypatch.setattr(core_speed, "time_work", lambda text: 3 * core_speed.REFERENCE_SECONDS / core_speed.REPEATS)
    assert core_speed.measure_core_share() == pytest.approx(3)


def test_the_work_of_a_core_is_the_same_text_every_time_and_takes_time():
    assert core_speed.make_text() == core_speed.make_text() and len(core_speed.make_text()) > 100_000
    assert core_speed.measure_core_share(1) > 0


def test_conversations_are_written_before_a_stage_in_proportion_to_its_steps(recipe):
    """Before fine-tuning a quickstart of three minutes wrote them for 5 s, of which its plan knew nothing."""
    plain, half, whole = (
        choose(recipe, 120.0, 1.0, contents={"sft": StageContent(0, share)}) for share in (0.0, 0.5, 1.0)
    )

    def find(choice, name):
        return next(stage for stage in choice.stages if stage.name == name)

    assert find(plain, "sft").start < find(half, "sft").start < find(whole, "sft").start
    tokens = find(whole, "sft").steps * whole.recipe.sft.batch_tokens
    assert find(whole, "sft").start - find(plain, "sft").start == pytest.approx(tokens / CONVERSATION_TOKENS, rel=0.01)
    assert find(whole, "pretrain").steps < find(plain, "pretrain").steps, "the time is taken from all stages"


def test_own_text_is_prepared_whole_however_few_steps_follow(recipe):
    """A folder of 20 GB takes many minutes before the first step; a budget of five began without counting them."""
    core = CoreTime(2.0, 2.0)
    assert OwnText(trained=1e8).seconds(core) == pytest.approx(2 * 1e8 * TRAINED_TEXT_SECONDS)
    assert OwnText(large=1e9).seconds(core) < OwnText(small=1e9).seconds(core), "on all cores"
    plain, some = (
        choose(recipe, 120.0, 1.0, contents={"pretrain": StageContent(text=OwnText(small=size))}) for size in (0, 1e8)
    )
    starts = [choice.stages[1].start for choice in (plain, some)]
    assert starts[1] - starts[0] == pytest.approx(1e8 * TEXT_SECONDS, rel=0.01)
    assert some.stages[1].steps < plain.stages[1].steps
    with pytest.raises(UserError, match="start, text, tokenizer and one evaluation take 1,9"):
        choose(recipe, 120.0, 1.0, contents={"pretrain": StageContent(text=OwnText(large=1e11))})


def test_an_answer_takes_a_processor_besides_its_products():
    core, fast = CoreTime(1.0, 1.0), CoreTime(0.5, 0.5)
    answers = partial(evaluation_seconds, 1_000, 64, 256, 1e5)
    assert answers(core) - answers(fast) == pytest.approx(500 * QUESTION_SECONDS)
    assert evaluation_seconds(0, 64, 256, 1e5, core) == evaluation_seconds(0, 64, 256, 1e5, fast), "text is products"


def test_a_step_on_answers_computes_the_head_for_fewer_tokens(recipe):
    """The rest of the conversations has no targets; text has, and so have conversations that are learned whole."""
    flops = training_flops(recipe.resolve_model())

    def step_seconds(generated, train_on="assistant"):
        sized = replace(recipe, sft=replace(recipe.sft, train_on=train_on))
        choice = choose(sized, 120.0, 1.0, contents={"sft": StageContent(0, generated)})
        step = next(stage.step_seconds for stage in choice.stages if stage.name == "sft")
        return step / choice.recipe.sft.batch_tokens

    saved = flops["head"] / flops["total"] * (1 - ANSWER_SHARE)
    assert step_seconds(1.0) == pytest.approx((1 - saved) * step_seconds(0.0), rel=2e-3)
    assert step_seconds(0.5) == pytest.approx((1 - saved / 2) * step_seconds(0.0), rel=2e-3)
    assert step_seconds(1.0, "all") == pytest.approx(step_seconds(0.0), rel=2e-3)
