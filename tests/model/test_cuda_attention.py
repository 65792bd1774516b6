"""The block mask for CUDA sees what attention inside documents and windows sees; its kernel needs a GPU."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from fledgling.config import ModelConfig
from fledgling.model.attention import blockwise_attention
from fledgling.model.cuda_attention import flex_sdpa, make_block_mask, make_block_masks
from fledgling.model.transformer import Transformer


def random_documents(rows, time, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return (torch.rand(rows, time, generator=draw) < 0.01).int().cumsum(-1).int()


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(("time", "window_size"), [(512, None), (512, 200), (300, None), (300, 48), (40, None)])
def test_attention_by_the_block_mask_is_blockwise_attention(time, window_size, documents):
    torch.manual_seed(0)
    q, k, v = torch.nn.functional.rms_norm(torch.randn(3, 2, 2, time, 32), (32,)).unbind()
    document_ids = random_documents(2, time) if documents else None
    mask = make_block_mask(document_ids, time, torch.device("cpu"), window_size)
    expected = blockwise_attention(q, k, v, document_ids, window_size=window_size)
    torch.testing.assert_close(flex_sdpa(q, k, v, mask), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window_size", [None, 130])
def test_no_more_blocks_are_computed_than_have_a_visible_pair(window_size):
    document_ids = random_documents(3, 1024)
    mask = make_block_mask(document_ids, 1024, torch.device("cpu"), window_size)
    expected = create_block_mask(mask.mask_mod, 3, None, 1024, 1024, device="cpu")
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(mask, name), getattr(expected, name)), name


def test_documents_in_any_order_leave_out_no_visible_pair():
    document_ids = torch.randint(3, (1, 384), dtype=torch.int32)
    q, k, v = torch.nn.functional.rms_norm(torch.randn(3, 1, 2, 384, 32), (32,)).unbind()
    mask = make_block_mask(document_ids, 384, torch.device("cpu"))
    torch.testing.assert_close(
        flex_sdpa(q, k, v, mask), blockwise_attention(q, k, v, document_ids), rtol=1e-4, atol=1e-5
    )


def test_a_row_that_is_one_document_has_no_mask():
    masks = make_block_masks(None, 256, torch.device("cpu"), [None, 64, None])
    assert masks[None] is None and masks[64] is not None


@torch.no_grad()
def test_a_compiled_block_is_compiled_once_for_all_batches_and_layers():
    from torch._dynamo.testing import CompileCounter

    config = ModelConfig(vocab_size=64, depth=3, width=64, heads=2, kv_heads=2, context=256, preset="nanochat-2025")
    model = Transformer(config)
    model.initialize(0)
    counter = CompileCounter()
    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(dynamic=False, backend=counter)
    for seed in range(4):
        mask = make_block_mask(random_documents(2, 256, seed), 256, torch.device("cpu"))
        x, rotary = model.positions(torch.randn(2, 256, 64), slice(0, 256))
        for block in model.blocks:
            x = block(x, rotary, mask=mask)
    assert counter.frame_count == 1
