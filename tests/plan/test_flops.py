"""FLOPs from sums written out; `tests/invariants/test_planner.py` compares them with torch's own count."""

import pytest

from fledgling.config import ModelConfig
from fledgling.plan import flops

DEPTH_20 = ModelConfig(65536, 20, 1280, 10, 10, 2048, preset="nanochat-2025")


@pytest.mark.parametrize("window_size", (None, 1, 5, 16, 99))
def test_mean_attended_keys_is_the_mean_over_a_row(window_size):
    seen = [min(position + 1, window_size or 16) for position in range(16)]
    assert flops.mean_attended_keys(16, "causal", window_size) == pytest.approx(sum(seen) / 16)
    assert flops.mean_attended_keys(16, "full", window_size) == min(window_size or 16, 16)


def test_training_is_six_flops_a_weight_and_twelve_a_pair():
    weights = 20 * 12 * 1280**2 + 65536 * 1280  # matrices of the blocks, and the head
    assert flops.training_flops_per_token(DEPTH_20) == 6 * weights + 12 * 20 * 1280 * 2048 == 3_491_758_080
    assert flops.forward_flops_per_token(DEPTH_20, 1024) == 2 * weights + 4 * 20 * 1280 * 1024


def test_decoding_attends_to_the_tokens_so_far():
    weights = 20 * 12 * 1280**2 + 65536 * 1280
    assert flops.decode_flops(DEPTH_20, 100) == 2 * weights + 4 * 20 * 1280 * 100
