"""Tests what a stage's batch and steps are derived from where its table leaves them open."""

import math

import pytest

from fledgling.config import DPOConfig, RLConfig, StageConfig, UserError, load_recipe
from fledgling.plan.stage_length import (
    SourceSize,
    derive_dpo_steps,
    derive_length,
    derive_rl_steps,
    derive_rows,
    open_batch,
    row_weights,
)

from .models import config

SIZES = {"gsm8k": SourceSize(8000, 0.125), "smoltalk": SourceSize(10**6, 0.5), "spelling": SourceSize(math.inf, 0.05)}


def recipe(**sft):
    settings = [f"sft.{key}={value}" for key, value in sft.items()]
    return load_recipe("d20-8xh100", ["sft={}", "sft.mixture={gsm8k = 0.5, smoltalk = 0.5}", *settings])


def test_a_step_of_fine_tuning_holds_the_examples_of_its_dial_whatever_the_depth():
    for depth in (4, 20):
        rows, steps, _ = derive_length(recipe(mixture_unit="examples"), "sft", config(depth), SIZES)
        assert rows == 8  # 32 examples that fill 10 rows on average
        assert steps == int(16_000 * 0.3125 / 8)  # 16,000 examples of .3125 rows until GSM8K is read
    doubled, fewer, _ = derive_length(recipe(mixture_unit="examples", examples_per_step=64), "sft", config(20), SIZES)
    assert (doubled, fewer) == (16, steps // 2)
    assert derive_length(recipe(mixture_unit="examples", num_epochs=3.0), "sft", config(20), SIZES)[1] == 3 * steps


def test_the_unit_of_a_mixture_decides_what_half_of_it_is():
    by_tokens, by_examples = (
        StageConfig(mixture={"gsm8k": 1.0, "smoltalk": 1.0}, mixture_unit=unit, examples_per_step=37)
        for unit in ("tokens", "examples")
    )
    assert row_weights(by_tokens, {}) == {"gsm8k": 1.0, "smoltalk": 1.0}
    assert row_weights(by_examples, SIZES) == {"gsm8k": 0.125, "smoltalk": 0.5}
    assert derive_rows(by_tokens, SIZES) < derive_rows(by_examples, SIZES)  # half the tokens are many short examples


def test_pretraining_and_midtraining_keep_the_batch_of_the_depth():
    assert not open_batch("midtrain", StageConfig()) and open_batch("sft", StageConfig())
    assert open_batch("midtrain", StageConfig(examples_per_step=9)) and not open_batch(
        "sft", StageConfig(batch_tokens=9)
    )


def test_a_pass_of_rl_ends_with_the_first_task_that_ends():
    table = RLConfig(tasks={"gsm8k": 1.0}, prompts_per_round=16)
    assert derive_rl_steps(table, {"gsm8k": 7473}) == 467
    mixed = RLConfig(tasks={"gsm8k": 1.0, "spelling": 3.0}, epochs=2, minibatches=3, num_epochs=0.5)
    assert derive_rl_steps(mixed, {"gsm8k": 7473, "spelling": math.inf}) == 7473 * 4 // 2 // 16 * 6
    assert derive_rl_steps(RLConfig(steps=5, tasks={"spelling": 1.0}), {}) == 5
    with pytest.raises(UserError, match=r"rl.steps is not set, and its tasks have no end \(spelling are generated\)"):
        derive_rl_steps(RLConfig(tasks={"spelling": 1.0}), {"spelling": math.inf})
    assert derive_dpo_steps(DPOConfig(batch_size=4, num_epochs=2.0), 10) == 5


def test_lengths_that_depend_on_an_unknown_source_are_unknown():
    assert derive_length(recipe(), "sft", config(20), {"gsm8k": SIZES["gsm8k"]}) is None
    with pytest.raises(UserError, match=r"sft.steps is not set, and its mixture has no end"):
        derive_length(recipe(mixture="{spelling = 1.0}", batch_tokens=2048), "sft", config(20), SIZES)
