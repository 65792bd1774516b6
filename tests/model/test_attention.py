"""Blockwise, windowed and paged attention against PyTorch's kernel, and branches of a tree against single rows."""

import pytest
import torch
import torch.nn.functional as F

from fledgling.config import ModelConfig
from fledgling.model import attention
from fledgling.model.attention import TreeMask
from fledgling.model.cache import CacheRow, KVCache
from fledgling.model.transformer import Transformer

SIZES = {"vocab_size": 60, "depth": 2, "width": 32, "heads": 2, "kv_heads": 2, "context": 24}


@pytest.mark.parametrize("document_ids", [None, torch.tensor([[0] * 100 + [1] * 100])])
def test_unbounded_scores_give_what_sdpa_computes(document_ids):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 200, 16) * 12 for _ in range(3))  # scores of several hundred
    visible = torch.ones(200, 200, dtype=torch.bool).tril()
    if document_ids is not None:
        visible = visible & (document_ids[:, :, None] == document_ids[:, None, :])[:, None]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    result = attention.blockwise_attention(q, k, v, document_ids, bounded=False)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    cache, row = KVCache(ModelConfig(family="llama", **SIZES), block_size=16), CacheRow()
    cache.make_batch([row], [200]).write(0, k, v)
    row.length = 199
    last = attention.paged_attention(q[:, :, -1:], cache.make_batch([row], [1]), 0, bounded=False)
    full = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(last, full[:, :, -1:], rtol=1e-4, atol=1e-4)
    assert not torch.isfinite(attention.blockwise_attention(q, k, v, document_ids, bounded=True)).all()


@pytest.mark.parametrize("max_blockwise", [attention.MAX_BLOCKWISE_INFERENCE, 8])  # blockwise, and with sdpa
def test_a_branch_sees_its_window_along_the_trunk_and_itself(max_blockwise, monkeypatch):
    monkeypatch.setattr(attention, "MAX_BLOCKWISE_INFERENCE", max_blockwise)
    fields = {"depth": 3, "heads": 4, "context": 48, "window_pattern": "S", "window_size": 6}
    model = Transformer(ModelConfig(family="fledgling", **SIZES | fields))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    generator = torch.Generator().manual_seed(4)
    trunk, first, second = (torch.randint(60, (size,), generator=generator) for size in (10, 7, 5))
    row = torch.cat((trunk, first, second))[None]
    branches = torch.tensor([[0] * 10 + [1] * 7 + [2] * 5])
    positions = torch.tensor([[*range(17), *range(10, 15)]])
    with torch.no_grad():
        result = model(row, tree=TreeMask(branches, positions))[0]
        alone = model(torch.cat((trunk, first))[None])[0, 10:]
        torch.testing.assert_close(result[10:17], alone, rtol=1e-4, atol=1e-5)
        alone = model(torch.cat((trunk, second))[None])[0, 10:]
        torch.testing.assert_close(result[17:], alone, rtol=1e-4, atol=1e-5)
