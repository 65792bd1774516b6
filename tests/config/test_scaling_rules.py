"""The rules give the published run's values, and follow width, batch and horizon as their sources say."""

import pytest

from fledgling.config.scaling_rules import (
    RunSize,
    batch_factor,
    midtrain_rate,
    optimal_batch_tokens,
    rl_rate,
    role_rates,
    sft_rate,
    warmup_steps,
    weight_decay,
    width_rates,
)

PUBLISHED = RunSize(1280, 560_988_160, 11_219_763_200, 524_288)


def test_the_published_run_has_its_published_rates_and_batch():
    rates = role_rates(PUBLISHED)
    assert {role: float(f"{rate:.2g}") for role, rate in rates.items()} == {
        "matrix": 0.02,
        "embedding": 0.15,
        "head": 0.0031,
        "scalar": 0.01,
    }
    assert optimal_batch_tokens(PUBLISHED.tokens) == PUBLISHED.batch_tokens


def test_rates_of_the_two_ends_fall_with_the_root_of_the_width_and_those_of_muon_do_not():
    narrow, wide = width_rates(256), width_rates(1024)
    assert narrow["embedding"] / wide["embedding"] == pytest.approx(2) == narrow["head"] / wide["head"]
    assert narrow["matrix"] == wide["matrix"] and narrow["scalar"] == wide["scalar"]
    assert width_rates(256, "adamw")["matrix"] / width_rates(1024, "adamw")["matrix"] == pytest.approx(4)


@pytest.mark.parametrize(("tokens", "batch"), [(2e5, 1024), (1e9, 2**18), (1e12, 2**20)])
def test_the_weights_average_over_the_same_share_of_a_run_of_any_batch_and_rate(tokens, batch):
    shares = set()
    for factor in (1, 4):
        size = RunSize(512, int(tokens) // 20, int(tokens), batch * factor)
        for rate in (0.01, 0.02):
            steps = size.tokens / size.batch_tokens
            shares.add(round(1 / (rate * weight_decay(size, rate) * steps), 9))
    assert shares == {round(1.084 * (int(tokens) / (int(tokens) // 20)) ** -0.527, 9)}


def test_warm_up_lasts_as_long_as_adam_remembers_but_at_most_a_tenth():
    assert warmup_steps(10_000, 0.95) == 40 and warmup_steps(10_000, 0.999) == 1000
    assert warmup_steps(100, 0.95) == 10 and warmup_steps(5, 0.95) == 0


def test_rates_of_later_stages_fall_with_their_length_and_batch_and_never_exceed_those_of_pretraining():
    assert midtrain_rate(1) == 1 == midtrain_rate(4) and midtrain_rate(0.25) == 0.5
    assert sft_rate(1, 1) == pytest.approx(0.7) and sft_rate(1e3, 1) == 1
    assert sft_rate(0.01, 1) < sft_rate(0.1, 1) and sft_rate(0.1, 0.25) == sft_rate(0.1, 1) / 2
    assert rl_rate(256) == 0.12 == 2 * rl_rate(1024)


def test_rates_grow_with_the_root_of_the_batch_and_fall_with_the_horizon():
    assert batch_factor(PUBLISHED.batch_tokens, PUBLISHED.tokens) == 1
    assert batch_factor(4096, 10**6) == pytest.approx(2 * batch_factor(1024, 10**6))
    assert batch_factor(1024, 10**6) / batch_factor(1024, 10**9) == pytest.approx(1000**0.285)
    assert batch_factor(1024, 195 * 1024) == pytest.approx(1, abs=0.01), "where it was fitted"
