"""Value embeddings, windows and residual scalars: what each does, and that off means not there."""

import pytest
import torch

from fledgling.config import ModelConfig, UserError
from fledgling.model import attention
from fledgling.model.attention import TreeMask
from fledgling.model.transformer import Transformer
from fledgling.model.window import windowed_sdpa
from fledgling.optim.roles import assign_role

SIZES = {"vocab_size": 60, "depth": 3, "width": 32, "heads": 4, "kv_heads": 2, "context": 48}


def random_model(**fields) -> Transformer:
    model = Transformer(ModelConfig(family="fledgling", **(SIZES | fields)))
    draw = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.3
    return model


def test_what_is_off_is_not_there():
    config = ModelConfig(depth=3).resolve(60)
    assert config.enabled_features == () and config.window_size == 0
    assert not [n for n, _ in Transformer(config).named_parameters() if "residual" in n or "value_embedding" in n]


def test_a_fresh_model_with_scalars_is_the_one_without():
    plain, scaled = (Transformer(ModelConfig(family="llama", **SIZES, residual_scalars=on)) for on in (False, True))
    for model in (plain, scaled):
        model.initialize(3)
    tokens = torch.arange(48)[None]
    with torch.no_grad():
        assert torch.equal(plain(tokens), scaled(tokens))
        scaled.blocks[1].residual.weight[1] = 0.5
        assert not torch.allclose(plain(tokens), scaled(tokens))


def test_value_embeddings_know_the_token_and_are_an_embedding():
    model = random_model(value_embeddings=2)
    tables = {name: p for name, p in model.named_parameters() if "value_embedding" in name}
    assert list(tables) == [f"blocks.{layer}.attention.value_embedding.weight" for layer in (0, 2)]
    assert all(assign_role(name, tuple(p.shape)) == "embedding" for name, p in tables.items())
    tokens = torch.full((1, 5), 7)
    with torch.no_grad():
        for table in tables.values():
            before = model(tokens)
            table[8] += 1
            assert torch.equal(model(tokens), before)
            table[7] += 1
            assert not torch.allclose(model(tokens), before)


def test_a_window_hides_what_lies_before_it_and_the_last_layer_sees_all():
    config = ModelConfig(family="fledgling", **SIZES, window_pattern="SSL", window_size=5)
    assert [config.layer_window_size(layer) for layer in range(3)] == [5, 5, None]
    assert ModelConfig(family="fledgling", **SIZES, window_pattern="S").window_size == 12
    assert [
        ModelConfig(family="fledgling", **SIZES, window_pattern="LS").layer_window_size(layer) for layer in range(3)
    ] == [
        None,
        12,
        None,
    ]
    draw = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, 2, 300, 8, generator=draw) for _ in range(3))
    far = torch.arange(300)[:, None] - torch.arange(300)
    seen = (far >= 0) & (far < 40)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    documents = torch.zeros(2, 300, dtype=torch.int32)
    for found in (
        attention.blockwise_attention(q, k, v, None, False, window_size=40),
        attention.blockwise_attention(q, k, v, documents, False, window_size=40),
        windowed_sdpa(q, k, v, None, 40),
        windowed_sdpa(q, k, v, attention.make_attention_mask(q.transpose(1, 2), documents, None), 40),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("longest", [attention.MAX_BLOCKWISE_INFERENCE, 8])  # by blocks, and by the library's kernel
def test_a_branch_sees_its_window_along_itself(longest, monkeypatch):
    monkeypatch.setattr(attention, "MAX_BLOCKWISE_INFERENCE", longest)
    model = random_model(window_pattern="S", window_size=6)
    draw = torch.Generator().manual_seed(4)
    trunk, one, two = (torch.randint(60, (size,), generator=draw) for size in (10, 7, 5))
    row = torch.cat((trunk, one, two))[None]
    branches = torch.tensor([[0] * 10 + [1] * 7 + [2] * 5])
    positions = torch.tensor([[*range(17), *range(10, 15)]])
    with torch.no_grad():
        found = model(row, tree=TreeMask(branches, positions))[0]
        torch.testing.assert_close(found[10:17], model(torch.cat((trunk, one))[None])[0, 10:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[17:], model(torch.cat((trunk, two))[None])[0, 10:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "word"), [({"window_pattern": "SXL"}, "SXL"), ({"value_embeddings": -1}, "value_embeddings")]
)
def test_what_makes_no_sense_is_refused(fields, word):
    with pytest.raises(UserError, match=word):
        ModelConfig(family="fledgling", **SIZES, **fields)
