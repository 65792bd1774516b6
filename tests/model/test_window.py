"""Windowed attention, by blocks and by pieces, equals PyTorch's kernel with the mask of the window."""

import pytest
import torch

from fledgling.config import ModelConfig
from fledgling.model.attention import blockwise_attention, make_attention_mask
from fledgling.model.transformer import Transformer
from fledgling.model.window import first_visible_key, window_mask, windowed_sdpa


@pytest.fixture(scope="module")
def tensors():
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, 2, 300, 8, generator=generator) for _ in range(3))
    distance = torch.arange(300)[:, None] - torch.arange(300)
    visible = (distance >= 0) & (distance < 40)
    return q, k, v, torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)


@pytest.mark.parametrize("document_ids", [None, torch.zeros(2, 300, dtype=torch.int32)])
def test_a_window_hides_earlier_keys(tensors, document_ids):
    q, k, v, expected = tensors
    blockwise = blockwise_attention(q, k, v, document_ids, False, window_size=40)
    torch.testing.assert_close(blockwise, expected, rtol=1e-4, atol=1e-5)
    mask = None if document_ids is None else make_attention_mask(q.transpose(1, 2), document_ids, None)
    torch.testing.assert_close(windowed_sdpa(q, k, v, mask, 40), expected, rtol=1e-4, atol=1e-5)


def test_the_first_visible_key_is_the_first_that_the_mask_shows():
    positions = torch.arange(20)
    for window_size in (1, 5, 30, None):
        mask = window_mask(positions, positions, window_size)
        assert [int(row.nonzero()[0]) for row in mask] == [first_visible_key(q, window_size) for q in range(20)]


def test_masks_of_whole_rows_give_what_pieces_give():
    model = Transformer(ModelConfig(50, 3, 32, 2, 2, 48, window_pattern="S", window_size=7))
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.3
    tokens = torch.randint(50, (2, 40))
    with torch.no_grad():
        expected = model(tokens)
        model.use_dense_masks = True
        for block in model.blocks:
            block.attention.cuts_rows = False
        torch.testing.assert_close(model(tokens), expected, rtol=1e-4, atol=1e-5)
