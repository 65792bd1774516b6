"""Prompts that the context has no room for: counted and logged, and an error where no other is left."""

from types import SimpleNamespace

import pytest

from fledgling.config import RLConfig, UserError
from fledgling.train.rl.build import report_cropped_prompts


def make_stream(is_cropped):
    config = RLConfig(prompts_per_round=4, minibatches=2)
    crop_prompt = lambda index: ([0], is_cropped(index))  # noqa: E731
    return SimpleNamespace(config=config, steps_per_round=2, max_prompt_tokens=64, crop_prompt=crop_prompt)


def test_prompts_that_are_all_too_long_are_an_error():
    with pytest.raises(UserError, match=r"rl: all of the first 12 prompts are longer than 64 tokens.*model.context"):
        report_cropped_prompts(make_stream(lambda index: True), 5, print)


def test_some_prompts_that_are_too_long_are_counted():
    lines = []
    report_cropped_prompts(make_stream(lambda index: index % 4 == 0), 5, lines.append)
    report_cropped_prompts(make_stream(lambda index: False), 5, lines.append)
    assert lines == [
        "rl: 3 of the first 12 prompts are longer than 64 tokens, which model.context leaves next to "
        "rl.max_new_tokens: they lose their beginning"
    ]
