"""Folded norm weights and deferred divisions give the numbers of plain RMSNorm."""

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


def make_random_model(family: str, **fields) -> Transformer:
    model = Transformer(ModelConfig(family=family, **(SIZES | fields)))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def copy_model(model: Transformer, **fields) -> Transformer:
    copy = Transformer(replace(model.config, **fields))
    copy.load_state_dict(model.state_dict())
    return copy


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the largest difference, relative to the largest value."""
    return ((result - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(("family", "fields"), SHAPES)
def test_deferring_the_division_changes_nothing(family, fields):
    plain = make_random_model(family, **fields)
    deferred = copy_model(plain, flash_norm=True)
    with torch.no_grad():
        assert relative_error(deferred(TOKENS), plain(TOKENS)) < 1e-5
    for model in (plain, deferred):
        cross_entropy_sum(
            model(TOKENS), model.head.weight, TOKENS.roll(-1, 1), model.config.logit_softcap, model.config.logit_shift
        ).backward()
    for (name, parameter), other in zip(plain.named_parameters(), deferred.parameters(), strict=True):
        assert relative_error(other.grad, parameter.grad) < 1e-4, name
    assert not torch.equal(plain(TOKENS), deferred(TOKENS)), "the division was not deferred"


def test_a_scale_deferred_through_a_bias_changes_the_model():
    """With biases r^2 does not commute with ReLU^2: deferred anyway, it gives another model."""
    plain = make_random_model("fledgling", bias=True)
    deferred = copy_model(plain, flash_norm=True)
    for block in deferred.blocks:
        assert not block.mlp.scale_commutes
        block.mlp.scale_commutes = True
    with torch.no_grad():
        assert relative_error(deferred(TOKENS), plain(TOKENS)) > 1e-3


@pytest.mark.parametrize("fields", [{}, {"activation": "relu2"}, {"bias": True}])
def test_norm_weights_are_folded_into_the_matrices_that_follow(fields):
    plain = make_random_model("llama", **fields)
    folded = fold_norm_weights(plain.config, plain.state_dict())
    with_ones = Transformer(plain.config)
    with_ones.load_state_dict(folded)
    assert all((w == 1).all() for name, w in folded.items() if name.endswith("norm.weight"))
    config, state = drop_norm_weights(plain.config, folded)
    without_weights, both = Transformer(config), Transformer(replace(config, flash_norm=True))
    with torch.no_grad():
        expected = plain.compute_logits(plain(TOKENS))
        for model, weights in ((with_ones, folded), (without_weights, state), (both, state)):
            model.load_state_dict(weights)
            assert relative_error(model.compute_logits(model(TOKENS)), expected) < 1e-5


def test_norms_that_cannot_be_folded_or_deferred_are_rejected():
    for family, fields, word in (
        ("fledgling", {}, "rms"),
        ("gpt2", {"kv_heads": 4}, "layer"),
        ("llama", {"tie_embeddings": True}, "head"),
    ):
        model = make_random_model(family, **fields)
        with pytest.raises(UserError, match=word):
            fold_norm_weights(model.config, model.state_dict())
    with pytest.raises(UserError, match="flash_norm"):
        ModelConfig(family="gpt2", **(SIZES | {"kv_heads": 4, "flash_norm": True}))
