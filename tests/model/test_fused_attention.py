"""Tests for fledgling.model.fused_attention."""

from types import SimpleNamespace

import pytest
import torch

from fledgling.model import fused_attention as module
from fledgling.model.fused_attention import fused_attention, reads_grouped_heads, repeat_heads


@pytest.mark.parametrize("masked", [False, True])
def test_repeated_heads_give_the_attention_of_grouped_ones(monkeypatch, masked):
    q, k, v = torch.randn(2, 6, 16, 8), torch.randn(2, 2, 16, 8), torch.randn(2, 2, 16, 8)
    mask = torch.ones(16, 16, dtype=torch.bool).tril()[None, None] if masked else None
    expected = fused_attention(q, k, v, mask, causal=not masked)
    monkeypatch.setattr(module, "reads_grouped_heads", lambda q, mask: False)
    torch.testing.assert_close(fused_attention(q, k, v, mask, causal=not masked), expected)
    assert torch.equal(repeat_heads(k, 6)[:, 3:], k[:, 1:].expand(-1, 3, -1, -1))


@pytest.mark.parametrize(
    ("dtype", "width", "masked", "major", "reads"),
    [
        (torch.bfloat16, 64, False, 9, True),
        (torch.bfloat16, 64, True, 9, False),  # flash attention takes no mask
        (torch.float32, 64, False, 9, False),
        (torch.bfloat16, 512, False, 9, False),
        (torch.float16, 64, False, 7, False),  # a T4
    ],
)
def test_a_card_repeats_heads_where_no_fused_kernel_reads_groups(monkeypatch, dtype, width, masked, major, reads):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    q = SimpleNamespace(device=torch.device("cuda"), dtype=dtype, shape=(2, 8, 32, width))
    assert reads_grouped_heads(q, torch.ones(1) if masked else None) == reads


def test_other_devices_read_groups_in_place():
    assert reads_grouped_heads(torch.zeros(1, 2, 3, 4), torch.ones(1))
