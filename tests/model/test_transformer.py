"""The decoder: sizes, initial weights, roles, tied matrices, and which tokens it sees, in all families.

Norms, positions and feed-forward parts are compared with Hugging Face's models in tests/export.
"""

import pytest
import torch

from fledgling.config import ModelConfig, OptimizerConfig
from fledgling.config.model import FAMILIES
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


def make_random_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """A model whose zero-initialized matrices are random too, so that every weight matters."""
    model = Transformer(config)
    model.initialize(seed)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize(("family", "sizes", "count"), PUBLISHED)
def test_published_models_have_their_published_size(family, sizes, count):
    vocab_size, depth, width, heads, context = sizes
    config = ModelConfig(
        family=family,
        vocab_size=vocab_size,
        depth=depth,
        width=width,
        heads=heads,
        kv_heads=heads,
        context=context,
        preset="nanochat-2025",
    )
    with torch.device("meta"):
        assert Transformer(config).count_parameters() == count


def test_features_that_are_off_have_no_parameters():
    names = [name for name, _ in Transformer(ModelConfig(**SIZES, preset="nanochat-2025")).named_parameters()]
    assert not [name for name in names if "residual" in name or "value_embedding" in name]


def test_the_same_seed_gives_the_same_weights():
    first, same, other = (Transformer(ModelConfig(50, 1, 64, 2, 2, 8)) for _ in range(3))
    first.initialize(3), same.initialize(3), other.initialize(4)
    assert torch.equal(first.embedding.weight, same.embedding.weight)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


def test_initial_weights_are_those_of_the_docstring():
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


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_one_role_and_is_updated(family):
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
    for _ in range(3):  # a head and output projections of zeros let no gradient through in the first steps
        optimizer.begin_step(1)
        cap = model.config.logit_softcap
        cross_entropy_sum(model(tokens), model.head.weight, tokens.roll(-1, 1), cap, 0.0).backward()
        optimizer.accumulate()
        assert optimizer.step() > 0
    assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name])]


@pytest.mark.parametrize("cap", [0.0, 15.0])
def test_a_tied_matrix_receives_the_gradients_of_both_uses(cap):
    tied = Transformer(ModelConfig(family="gpt2", **SIZES, logit_softcap=cap))
    tied.initialize(1)
    untied = Transformer(ModelConfig(family="gpt2", **SIZES, logit_softcap=cap, tie_embeddings=False))
    untied.load_state_dict(tied.state_dict())
    assert tied.count_parameters() == untied.count_parameters() - 60 * 32
    assert tied.embedding.weight is tied.head.weight
    tokens = torch.randint(60, (2, 24), generator=torch.Generator().manual_seed(2))
    for model in (tied, untied):
        cross_entropy_sum(model(tokens), model.head.weight, tokens.roll(-1, 1), cap, 0.0).backward()
    both = untied.embedding.weight.grad + untied.head.weight.grad
    torch.testing.assert_close(tied.head.weight.grad, both)
    assert untied.embedding.weight.grad.abs().max() > 0 and untied.head.weight.grad.abs().max() > 0


def test_documents_do_not_see_each_other():
    model = make_random_model(ModelConfig(50, 2, 64, 2, 2, 64))
    tokens = torch.randint(50, (1, 40))
    document_ids = (torch.arange(40) >= 15).int()[None]
    changed = tokens.clone()
    changed[0, :15] = (changed[0, :15] + 7) % 50
    with torch.no_grad():
        before, after = model(tokens, document_ids), model(changed, document_ids)
    assert torch.equal(before[0, 15:], after[0, 15:])
    assert not torch.allclose(before[0, :15], after[0, :15])


def test_the_future_is_not_seen():
    model = make_random_model(ModelConfig(50, 2, 64, 2, 1, 300))
    tokens = torch.randint(50, (1, 280))
    changed = tokens.clone()
    changed[0, 200:] = 3
    with torch.no_grad():
        assert torch.equal(model(tokens)[0, :200], model(changed)[0, :200])


@pytest.mark.parametrize("family", FAMILIES)
def test_documents_do_not_see_each_other_and_the_future_is_not_seen_in_any_family(family):
    model = Transformer(ModelConfig(family=family, **SIZES))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    tokens = torch.randint(60, (1, 24), generator=generator)
    document_ids = (torch.arange(24) >= 10).int()[None]
    early, late = tokens.clone(), tokens.clone()
    early[0, :10] = (early[0, :10] + 7) % 60
    late[0, 20:] = (late[0, 20:] + 7) % 60
    with torch.no_grad():
        output = model(tokens, document_ids)
        assert torch.equal(output[0, 10:], model(early, document_ids)[0, 10:])
        assert torch.equal(output[0, :20], model(late, document_ids)[0, :20])
        assert not torch.allclose(output[0, 20:], model(late, document_ids)[0, 20:])
