"""Norms folded into matrices, and divided by behind their products: the same numbers as plain RMSNorm."""

from dataclasses import replace

import pytest
import torch

from fledgling.config import ModelConfig, UserError
from fledgling.model.flash_norm import drop_norm_weights, fold_norm_weights
from fledgling.model.logprob import cross_entropy_sum
from fledgling.model.transformer import Transformer

SIZES = {"vocab_size": 60, "depth": 3, "width": 64, "heads": 4, "kv_heads": 2, "context": 40}
SHAPES = [
    ("fledgling", {}),
    ("fledgling", {"norm": "rms_weighted", "bias": True}),
    ("fledgling", {"activation": "gelu", "qk_norm": False}),
    ("fledgling", {"activation": "swiglu"}),
    ("llama", {}),
    ("llama", {"bias": True}),
    ("llama", {"activation": "relu2"}),
]
TOKENS = torch.randint(60, (3, 40), generator=torch.Generator().manual_seed(0))


def random_model(family: str, **fields) -> Transformer:
    model = Transformer(ModelConfig(family=family, **(SIZES | fields)))
    draw = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.3
    return model


def twin(model: Transformer, **fields) -> Transformer:
    other = Transformer(replace(model.config, **fields))
    other.load_state_dict(model.state_dict())
    return other


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(("family", "fields"), SHAPES)
def test_dividing_behind_the_products_changes_nothing(family, fields):
    plain = random_model(family, **fields)
    deferred = twin(plain, flash_norm=True)
    with torch.no_grad():
        assert off(deferred(TOKENS), plain(TOKENS)) < 1e-5
    for model in (plain, deferred):
        cross_entropy_sum(model(TOKENS), model.head.weight, TOKENS.roll(-1, 1), model.config.logit_softcap).backward()
    for (name, one), other in zip(plain.named_parameters(), deferred.parameters(), strict=True):
        assert off(other.grad, one.grad) < 1e-4, name
    assert not torch.equal(plain(TOKENS), deferred(TOKENS)), "the deferred way was not taken"


def test_a_factor_that_does_not_pass_is_seen():
    """With biases r^2 does not pass through ReLU^2: were it let through, the model would be another."""
    plain = random_model("fledgling", bias=True)
    deferred = twin(plain, flash_norm=True)
    for block in deferred.blocks:
        assert not block.mlp.scale_commutes
        block.mlp.scale_commutes = True
    with torch.no_grad():
        assert off(deferred(TOKENS), plain(TOKENS)) > 1e-3


@pytest.mark.parametrize("fields", [{}, {"activation": "relu2"}, {"bias": True}])
def test_weights_of_norms_are_folded_into_what_follows(fields):
    plain = random_model("llama", **fields)
    folded = fold_norm_weights(plain.config, plain.state_dict())
    same = Transformer(plain.config)
    same.load_state_dict(folded)
    assert all((w == 1).all() for name, w in folded.items() if name.endswith("norm.weight"))
    config, state = drop_norm_weights(plain.config, folded)
    bare, both = Transformer(config), Transformer(replace(config, flash_norm=True))
    with torch.no_grad():
        expected = plain.compute_logits(plain(TOKENS))
        for model, weights in ((same, folded), (bare, state), (both, state)):
            model.load_state_dict(weights)
            assert off(model.compute_logits(model(TOKENS)), expected) < 1e-5


def test_what_cannot_be_folded_or_deferred_is_refused():
    for family, fields, word in (
        ("fledgling", {}, "rms"),
        ("gpt2", {"kv_heads": 4}, "layer"),
        ("llama", {"tie_embeddings": True}, "head"),
    ):
        model = random_model(family, **fields)
        with pytest.raises(UserError, match=word):
            fold_norm_weights(model.config, model.state_dict())
    with pytest.raises(UserError, match="flash_norm"):
        ModelConfig(family="gpt2", **(SIZES | {"kv_heads": 4, "flash_norm": True}))
