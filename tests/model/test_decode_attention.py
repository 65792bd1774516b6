"""Attention of one new token of each row over the blocks of a table."""

import pytest
import torch
import torch.nn.functional as F

from fledgling.model import decode_attention
from fledgling.model.decode_attention import DecodeLayer, choose_decode_kernel, make_decode_mask

SIZE, GROUPS, WIDTH = 4, 2, 8


@pytest.mark.parametrize("window_size", [None, 3])
@pytest.mark.parametrize("heads", [2, 6])
def test_each_row_attends_to_the_tokens_of_its_blocks(monkeypatch, heads, window_size):
    torch.manual_seed(0)
    lengths, tables = [1, 4, 9], [[5, 0, 0], [2, 0, 0], [1, 6, 3]]  # the new token included
    keys, values = (torch.randn(8 * SIZE, GROUPS, WIDTH) for _ in range(2))
    q, k, v = (torch.randn(3, count, 1, WIDTH) for count in (heads, GROUPS, GROUPS))
    slots = [tables[row][(n - 1) // SIZE] * SIZE + (n - 1) % SIZE for row, n in enumerate(lengths)]
    counts = torch.tensor(lengths, dtype=torch.int32)
    mask = make_decode_mask(counts, 3 * SIZE, window_size)
    table = torch.tensor(tables, dtype=torch.int32)
    layer = DecodeLayer(
        "gather", SIZE, keys, values, torch.tensor(slots), table, counts, torch.arange(4), mask, window_size
    )
    y = layer.attend(q, k, v)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # the formula that is compiled
    assert torch.allclose(layer.attend(q, k, v), y, atol=1e-6)
    for row, length in enumerate(lengths):
        places = [tables[row][n // SIZE] * SIZE + n % SIZE for n in range(length)][-(window_size or length) :]
        assert torch.equal(keys[places[-1]], k[row, :, 0]) and torch.equal(values[places[-1]], v[row, :, 0])
        repeated = [part[places].repeat_interleave(heads // GROUPS, 1).transpose(0, 1) for part in (keys, values)]
        expected = F.scaled_dot_product_attention(q[row], *repeated)
        assert torch.allclose(y[row], expected, atol=1e-6)


def test_flash_attention_is_chosen_where_it_can_read_blocks(monkeypatch):
    cuda = torch.device("cuda", 0)
    assert choose_decode_kernel(cuda, torch.bfloat16, 128) == "gather"  # FlashAttention 2 rejects block tables
    monkeypatch.setattr(decode_attention, "has_paged_varlen", lambda: True)
    assert choose_decode_kernel(cuda, torch.bfloat16, 128) == "varlen"
    for case in ((torch.device("cpu"), torch.bfloat16, 128), (cuda, torch.float32, 128), (cuda, torch.float16, 512)):
        assert choose_decode_kernel(*case) == "gather"
