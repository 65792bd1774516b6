"""Model configurations: families, derived sizes, descriptions in checkpoints, and rejected values."""

import tomllib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledgling.config import ModelConfig, Recipe, UserError, dump_toml
from fledgling.config.model import FAMILIES, choose_heads, derive_intermediate_size

SIZES = {"vocab_size": 60, "depth": 3, "width": 32, "heads": 4, "kv_heads": 4, "context": 24}


def test_a_gpt2_of_depth_twelve_is_the_smallest_published_one():
    config = ModelConfig(depth=12, family="gpt2", context=1024).resolve(50257)
    assert (config.width, config.heads, config.intermediate_size, config.tie_embeddings) == (768, 12, 3072, True)


@pytest.mark.parametrize("width", [32, 64, 96, 256, 384, 768, 1024, 4096, 8192])
def test_a_gated_intermediate_size_is_a_little_over_eight_thirds_of_the_width(width):
    assert 8 / 3 <= derive_intermediate_size(width, "swiglu") / width <= 3.5


def test_descriptions_from_before_there_were_families_still_load():
    old = {**SIZES, "mlp_ratio": 3, "logit_softcap": 15.0, "rope_base": 1e4, "norm_eps": 1e-6, "family": "fledgling"}
    assert ModelConfig.from_dict(old) == ModelConfig(**SIZES, intermediate_size=96, preset="nanochat-2025")
    for family in FAMILIES:
        config = ModelConfig(family=family, **SIZES)
        assert ModelConfig.from_dict(config.to_dict()) == config


def test_any_family_accepts_any_part():
    table = ModelConfig(
        depth=1, width=32, heads=2, family="llama", activation="relu2", qk_norm=True, logit_softcap=15.0
    )
    config = table.resolve(60)
    parts = (config.activation, config.intermediate_size, config.qk_norm, config.logit_softcap)
    assert parts == ("relu2", 128, True, 15.0)
    assert config.norm == "rms_weighted"
    with pytest.raises(UserError, match="activation"):
        ModelConfig(family="llama", **SIZES, activation="swish")


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"window_pattern": "SXL"}, "SXL"),
        ({"value_embeddings": -1}, "value_embeddings"),
        ({"logit_shift": 2.0, "logit_softcap": 0.0}, "model.logit_shift needs model.logit_softcap"),
        ({"logit_shift": float("inf")}, "logit_shift is inf"),
    ],
)
def test_features_with_impossible_values_are_rejected(fields, word):
    with pytest.raises(UserError, match=word):
        ModelConfig(family="fledgling", **SIZES, **fields)


@pytest.mark.parametrize(
    ("sizes", "word"),
    [
        ((50, 1, 100, 3, 3, 8), "heads"),
        ((50, 1, 96, 4, 3, 8), "kv_heads"),
        ((0, 1, 64, 2, 2, 8), "vocab_size"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, word):
    with pytest.raises(UserError, match=word):
        ModelConfig(*sizes)


def test_a_window_pattern_gives_each_layer_its_window_and_the_last_layer_none():
    def window_sizes(**fields):
        config = ModelConfig(**SIZES | {"context": 48}, preset="nanochat-2025", **fields)
        return [config.layer_window_size(layer) for layer in range(3)]

    assert window_sizes(window_pattern="SSL", window_size=5) == [5, 5, None]
    assert window_sizes(window_pattern="LS") == [None, 12, None]  # a quarter of the context


@given(
    depth=st.sampled_from([1, 2, 4, 12]),
    family=st.sampled_from(["fledgling", "gpt2", "llama"]),
    vocab_size=st.integers(1, 999),
)
def test_a_complete_model_configuration_survives_json_and_toml(depth, family, vocab_size):
    config = ModelConfig(depth=depth, family=family).resolve(vocab_size)
    assert ModelConfig.from_dict(config.to_dict()) == config
    table = config.unpin("vocab_size", "window_size")
    written = tomllib.loads(dump_toml(replace(Recipe(), model=table)))["model"]
    assert ModelConfig(**written).resolve(vocab_size) == config


def test_an_older_checkpoint_s_field_names_are_read():
    config = ModelConfig(depth=2, window_pattern="S", window_size=8).resolve(60)
    values = config.to_dict()
    names = {
        "intermediate_size": "hidden",
        "logit_softcap": "softcap",
        "tie_embeddings": "tied",
        "window_size": "window",
    }
    assert ModelConfig.from_dict({names.get(name, name): value for name, value in values.items()}) == config


def test_heads_divide_the_width_evenly_and_are_about_as_wide_as_the_familys():
    assert [choose_heads(64 * depth, 128) for depth in range(1, 10)] == [1, 1, 2, 2, 2, 3, 4, 4, 4]
    sizes = ((1280, 128), (768, 64), (100, 100 / 3), (7, 128))
    assert [choose_heads(*size) for size in sizes] == [10, 12, 2, 1]
