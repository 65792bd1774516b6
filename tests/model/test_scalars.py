"""Gates and learned scalars begin as the model without them; what they mix is what their page says."""

import pytest
import torch

from fledgling.config import ModelConfig
from fledgling.model.attention import TreeMask, exclude_own_value
from fledgling.model.cache import KVCache
from fledgling.model.transformer import Transformer
from fledgling.plan.inference import kv_cache_bytes

SIZES = {"vocab_size": 60, "depth": 6, "width": 64, "heads": 4, "kv_heads": 2, "context": 48}
TOKENS = torch.arange(40)[None]


def make(**options) -> Transformer:
    model = Transformer(ModelConfig(family="llama", **SIZES, **options))
    model.initialize(3)
    return model


def test_fresh_gates_and_scalars_change_nothing():
    features = ("head_gates", "skip_scalars", "smear", "residual_scalars")
    plain, scaled = make(), make(**dict.fromkeys(features, True))
    gated = make(value_embeddings=2, value_gates=True)
    with torch.no_grad():
        assert torch.equal(plain(TOKENS), scaled(TOKENS))
        torch.testing.assert_close(gated(TOKENS), make(value_embeddings=2)(TOKENS))
        for name in ("skip_connections.skips.weight", "smear.scale.weight", "blocks.1.attention.gate.weight"):
            before, parameter = scaled(TOKENS), scaled.get_parameter(name)
            parameter += 0.5
            assert not torch.allclose(before, scaled(TOKENS)), name


def test_a_skip_reaches_over_the_middle_and_back_out_takes_the_middle_away():
    model, seen = make(skip_scalars=True, back_out=True), {}
    for number, block in enumerate(model.blocks):
        block.register_forward_hook(lambda module, args, result, n=number: seen.update({n: (args[0], result)}))
    model.norm.register_forward_hook(lambda module, args, result: seen.update(norm=args[0]))
    model.skip_connections.skips.weight.data.copy_(torch.tensor([2.0, 3.0]))
    model(TOKENS)
    assert len(model.skip_connections.skips.weight) == 2  # 4 reads 0, 3 reads 1; 2 would read its own input
    torch.testing.assert_close(seen[4][0], seen[3][1] + 2.0 * seen[0][1])
    torch.testing.assert_close(seen[3][0], seen[2][1] + 3.0 * seen[1][1])
    torch.testing.assert_close(seen["norm"], seen[5][1] - 0.2 * seen[2][1])


def test_smear_mixes_in_the_token_before_within_a_document_and_along_a_tree():
    model = make(smear=True)
    model.smear.scale.weight.data.fill_(2.0)  # the gate is 1/2
    x, seen = model.embedding(TOKENS).detach(), []
    model.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(TOKENS, (TOKENS >= 10).int())
    expected = x.clone()
    expected[:, 1:] += x[:, :-1]
    expected[:, 10] = x[:, 10]
    torch.testing.assert_close(seen[0], expected)
    branches, positions = torch.tensor([[0, 0, 0, 1, 1, 2, 2]]), torch.tensor([[0, 1, 2, 3, 4, 3, 4]])
    model(TOKENS[:, :7], tree=TreeMask(branches, positions))
    along = x[:, :7].clone()
    along[:, [1, 2, 3, 4, 5, 6]] += x[:, [0, 1, 2, 3, 2, 5]]
    torch.testing.assert_close(seen[1], along)


@pytest.mark.parametrize("smear", [False, True])
def test_a_cache_with_smear_also_keeps_ids_and_the_planner_counts_them(smear):
    config = ModelConfig(family="llama", **SIZES, smear=smear)
    cache = KVCache(config, torch.float32)
    assert cache.block_bytes == kv_cache_bytes(config, 1, cache.block_size, "float32")
    assert len(cache.tokens) == smear


def test_exclusive_attention_is_orthogonal_to_the_token_s_own_value():
    torch.manual_seed(0)
    y, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
    z, own = exclude_own_value(y, v), v.repeat_interleave(2, dim=1)
    assert (z * own).sum(-1).abs().max() < 1e-5
    torch.testing.assert_close(z + (y * own).sum(-1, keepdim=True) / own.square().sum(-1, keepdim=True) * own, y)
    assert torch.equal(exclude_own_value(y, torch.zeros_like(v)), y), "no value, nothing to take away"
