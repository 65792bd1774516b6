"""Intervals against known values, and bits per byte against a hand computation."""

import math

import numpy as np
import pytest
import torch

from fledgling.data.batch import IGNORE, Batch
from fledgling.evals.bpb import bits_per_byte
from fledgling.evals.measurement import wilson
from fledgling.model.config import ModelConfig
from fledgling.model.transformer import Transformer


def test_wilson_is_the_published_interval():
    low, high = wilson(81, 263)  # Newcombe 1998, table I
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson(0, 20)[0] == 0 and wilson(0, 20)[1] == pytest.approx(0.1611, abs=1e-3)
    assert wilson(20, 20)[1] == 1


def test_a_fresh_model_spends_log_v_bits_a_token():
    model = Transformer(ModelConfig(64, 1, 32, 1, 1, 16))
    model.initialize(0)
    targets = torch.randint(1, 64, (4, 16))
    targets[0, :3] = IGNORE
    targets[1, 0] = 0  # a special token: no bytes, not counted
    lengths = np.array([0] + [2] * 63)
    found = bits_per_byte(model, [Batch(torch.randint(64, (4, 16)), targets)], lengths)
    assert found.value == pytest.approx(math.log2(64) / 2, rel=1e-5)
    assert found.n == 4 and found.low <= found.value <= found.high
