"""Queries and keys before attention: the order of rotation and normalization, over each head or all of them."""

import pytest
import torch

from fledgling.config import ModelConfig
from fledgling.model.positions import make_rotary_table
from fledgling.model.query_key import NormThenRotate, RotateThenNorm, choose_rotary, make_query_key


def config_of(**fields):
    return ModelConfig(vocab_size=16, depth=4, width=32, heads=4, kv_heads=2, context=8, **fields)


def draw(config):
    torch.manual_seed(0)
    return torch.randn(2, 4, 8, config.head_width), torch.randn(2, 2, 8, config.head_width)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"qk_norm": False}, RotateThenNorm),
        ({}, RotateThenNorm),
        ({"qk_norm_weights": "head"}, NormThenRotate),
        ({"qk_norm_weights": "layer"}, NormThenRotate),
    ],
)
def test_the_part_follows_from_the_configuration_and_keeps_shapes_and_lengths(fields, kind):
    config = config_of(**fields)
    part, (q, k) = make_query_key(config), draw(config)
    rotary = make_rotary_table(config)
    new_q, new_k = part(q, k, rotary)
    assert type(part) is kind and (new_q.shape, new_k.shape) == (q.shape, k.shape)
    if config.qk_norm and fields.get("qk_norm_weights") != "layer":
        torch.testing.assert_close(
            new_q.norm(dim=-1), torch.full(q.shape[:3], config.head_width**0.5), rtol=1e-4, atol=0
        )
    elif not config.qk_norm:
        torch.testing.assert_close(new_q.norm(dim=-1), q.norm(dim=-1))


def test_heads_are_normalized_together_where_the_weights_are_of_a_layer():
    config = config_of(qk_norm_weights="layer")
    q, k = draw(config)
    part = make_query_key(config)
    new_q, _ = part(q, k, None)
    rows = q.transpose(1, 2).flatten(2)
    expected = rows / (rows.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
    torch.testing.assert_close(new_q.transpose(1, 2).flatten(2), expected)


def test_both_at_once_have_the_bits_of_each():
    config = config_of()
    part, (q, k), rotary = make_query_key(config), draw(config), make_rotary_table(config)
    for one, other in zip(part(q, k, rotary, as_one=True), part(q, k, rotary), strict=True):
        assert torch.equal(one, other)


def test_a_layer_has_the_table_of_its_kind_or_none():
    config = config_of(rope_pattern="RN")
    assert [choose_rotary(config, layer) for layer in range(2)] == [slice(0, 2), None]
