"""RoPE's frequencies beyond the trained context: which stay, which are divided, and the ramp between."""

import math

import pytest
import torch

from fledgling.config import ModelConfig
from fledgling.model.rope import make_frequencies, plain_frequencies


def frequencies(kind, **fields):
    sizes = {"vocab_size": 16, "depth": 2, "width": 128, "heads": 2, "context": 256}
    config = ModelConfig(**sizes, rope_type=kind, rope_factor=4.0, **fields)
    return make_frequencies(config)


def test_frequencies_fall_from_one_to_the_base():
    found = plain_frequencies(10_000.0, 64)
    assert found[0] == 1 and len(found) == 32
    torch.testing.assert_close(found[16], torch.tensor(0.01))
    assert (found.diff() < 0).all()


def test_the_linear_rule_divides_all_and_ntk_the_slowest():
    plain, scale = frequencies("default")
    linear, ntk = frequencies("linear")[0], frequencies("ntk")[0]
    torch.testing.assert_close(linear, plain / 4)
    assert scale == 1.0 and ntk[0] == plain[0]
    torch.testing.assert_close(ntk[-1], plain[-1] / 4, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["llama3", "yarn"])
def test_fast_frequencies_stay_and_slow_ones_are_divided(kind):
    plain, (found, scale) = frequencies("default")[0], frequencies(kind, rope_original_context=64)
    share = found / plain
    assert share[0] == 1 and share[-1] == pytest.approx(0.25) and (share.diff() <= 1e-6).all()
    assert scale == pytest.approx(0.1 * math.log(4) + 1 if kind == "yarn" else 1.0)
