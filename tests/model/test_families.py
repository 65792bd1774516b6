"""The parts of the families: what each holds, how each begins, and that a tied matrix is one."""

import pytest
import torch
import torch.nn.functional as F

from fledgling.config import ModelConfig, OptimizerConfig, UserError
from fledgling.config.model import FAMILIES, derive_intermediate_size
from fledgling.model import attention
from fledgling.model.cache import CacheRow, KVCache
from fledgling.model.logprob import cross_entropy_sum
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.optim.roles import ROLES, assign_role
from fledgling.runtime.world import World

SIZES = {"vocab_size": 60, "depth": 2, "width": 32, "heads": 4, "kv_heads": 4, "context": 24}
PUBLISHED = [
    ("gpt2", (50257, 12, 768, 12, 1024), 124_439_808),
    ("gpt2", (50257, 24, 1024, 16, 1024), 354_823_168),
    ("gpt2", (50257, 36, 1280, 20, 1024), 774_030_080),
    ("gpt2", (50257, 48, 1600, 25, 1024), 1_557_611_200),
    ("llama", (32000, 32, 4096, 32, 4096), 6_738_415_616),
    ("fledgling", (65536, 20, 1280, 10, 2048), 560_988_160),
]


@pytest.mark.parametrize(("family", "sizes", "count"), PUBLISHED)
def test_published_models_have_their_published_size(family, sizes, count):
    vocab_size, depth, width, heads, context = sizes
    config = ModelConfig(
        family=family, vocab_size=vocab_size, depth=depth, width=width, heads=heads, kv_heads=heads, context=context
    )
    with torch.device("meta"):
        assert Transformer(config).count_parameters() == count


def test_a_depth_of_twelve_is_gpt2_s_smallest():
    config = ModelConfig(depth=12, family="gpt2", context=1024).resolve(50257)
    assert (config.width, config.heads, config.intermediate_size, config.tie_embeddings) == (768, 12, 3072, True)


@pytest.mark.parametrize("width", [32, 64, 96, 256, 384, 768, 1024, 4096, 8192])
def test_a_gated_hidden_width_is_a_little_over_eight_thirds(width):
    assert 8 / 3 <= derive_intermediate_size(width, "swiglu") / width <= 3.5


def test_descriptions_from_before_there_were_families_still_load():
    old = {**SIZES, "mlp_ratio": 3, "logit_softcap": 15.0, "rope_base": 1e4, "norm_eps": 1e-6, "family": "fledgling"}
    assert ModelConfig.from_dict(old) == ModelConfig(**SIZES, intermediate_size=96)
    for family in FAMILIES:
        config = ModelConfig(family=family, **SIZES)
        assert ModelConfig.from_dict(config.to_dict()) == config


def test_a_part_can_be_pinned_in_any_family():
    table = ModelConfig(
        depth=1, width=32, heads=2, family="llama", activation="relu2", qk_norm=True, logit_softcap=15.0
    )
    config = table.resolve(60)
    assert (config.activation, config.intermediate_size, config.qk_norm, config.logit_softcap) == (
        "relu2",
        128,
        True,
        15.0,
    )
    assert config.norm == "rms_weighted"
    with pytest.raises(UserError, match="activation"):
        ModelConfig(family="llama", **SIZES, activation="swish")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_one_role_and_moves(family):
    model = Transformer(ModelConfig(family=family, **SIZES))
    model.initialize(0)
    roles = {name: assign_role(name, tuple(p.shape)) for name, p in model.named_parameters()}
    assert set(roles.values()) <= set(ROLES)
    for name, role in roles.items():
        expected = "matrix" if name.startswith("blocks.") and name.endswith("proj.weight") else role
        assert role == expected
        if name.endswith(".bias") or "norm" in name or name.startswith("positions."):
            assert role == "scalar"
    assert sum(role == "head" for role in roles.values()) == 1
    assert ("embedding" in roles.values()) == (family != "gpt2")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Optimizer(model, OptimizerConfig(), World.start("cpu"))
    tokens = torch.randint(60, (2, 24), generator=torch.Generator().manual_seed(0))
    for _ in range(3):  # a head and outputs that begin at zero let no gradient through at first
        optimizer.begin_step(1)
        cross_entropy_sum(model(tokens), model.head.weight, tokens.roll(-1, 1), model.config.logit_softcap).backward()
        optimizer.accumulate()
        assert optimizer.step() > 0
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert not still


@pytest.mark.parametrize("cap", [0.0, 15.0])
def test_a_tied_matrix_receives_the_gradients_of_both_uses(cap):
    tied = Transformer(ModelConfig(family="gpt2", **SIZES, logit_softcap=cap))
    tied.initialize(1)
    apart = Transformer(ModelConfig(family="gpt2", **SIZES, logit_softcap=cap, tie_embeddings=False))
    apart.load_state_dict(tied.state_dict())
    assert tied.count_parameters() == apart.count_parameters() - 60 * 32
    assert tied.embedding.weight is tied.head.weight
    tokens = torch.randint(60, (2, 24), generator=torch.Generator().manual_seed(2))
    for model in (tied, apart):
        cross_entropy_sum(model(tokens), model.head.weight, tokens.roll(-1, 1), cap).backward()
    both = apart.embedding.weight.grad + apart.head.weight.grad
    torch.testing.assert_close(tied.head.weight.grad, both)
    assert apart.embedding.weight.grad.abs().max() > 0 and apart.head.weight.grad.abs().max() > 0


def test_first_weights_are_those_the_docstring_promises():
    sizes = SIZES | {"vocab_size": 2000, "width": 128, "depth": 8}
    default, gpt2, llama = (
        Transformer(ModelConfig(family=family, **sizes)) for family in ("fledgling", "gpt2", "llama")
    )
    for model in (default, gpt2, llama):
        model.initialize(0)
    tokens = torch.arange(24)[None]
    with torch.no_grad():
        assert not default.compute_logits(default(tokens)).any()
    assert gpt2.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert gpt2.blocks[3].attention.o_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert gpt2.blocks[3].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not gpt2.blocks[3].mlp.fc1.bias.any() and (gpt2.norm.weight == 1).all()
    assert llama.blocks[3].mlp.down_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert (llama.blocks[0].attention_norm.weight == 1).all()


@pytest.mark.parametrize("documents", [None, torch.tensor([[0] * 100 + [1] * 100])])
def test_unbounded_scores_are_what_the_library_computes(documents):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 200, 16) * 12 for _ in range(3))  # scores of several hundred
    seen = torch.ones(200, 200, dtype=torch.bool).tril()
    if documents is not None:
        seen = seen & (documents[:, :, None] == documents[:, None, :])[:, None]
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    ours = attention.blockwise_attention(q, k, v, documents, bounded=False)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    cache, row = (
        KVCache(ModelConfig(family="llama", **SIZES | {"heads": 2, "kv_heads": 2, "width": 32}), block_size=16),
        CacheRow(),
    )
    cache.make_batch([row], [200]).write(0, k, v)
    row.length = 199
    last = attention.paged_attention(q[:, :, -1:], cache.make_batch([row], [1]), 0, bounded=False)
    whole = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(last, whole[:, :, -1:], rtol=1e-4, atol=1e-4)
    assert not torch.isfinite(attention.blockwise_attention(q, k, v, documents, bounded=True)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_documents_do_not_see_each_other_and_the_future_is_not_seen(family):
    model = Transformer(ModelConfig(family=family, **SIZES))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    tokens = torch.randint(60, (1, 24), generator=generator)
    documents = (torch.arange(24) >= 10).int()[None]
    early, late = tokens.clone(), tokens.clone()
    early[0, :10] = (early[0, :10] + 7) % 60
    late[0, 20:] = (late[0, 20:] + 7) % 60
    with torch.no_grad():
        whole = model(tokens, documents)
        assert torch.equal(whole[0, 10:], model(early, documents)[0, 10:])
        assert torch.equal(whole[0, :20], model(late, documents)[0, :20])
        assert not torch.allclose(whole[0, 20:], model(late, documents)[0, 20:])
