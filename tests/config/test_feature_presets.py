"""Presets of optional features: the default, and what recorded models are taken for."""

from fledgling.config import ModelConfig
from fledgling.config.feature_presets import name_preset


def test_a_preset_decides_the_optional_features_of_our_own_family():
    plain = ModelConfig(depth=3, preset="nanochat-2025").resolve(60)
    assert plain.enabled_features == () and plain.window_size == 0
    default = ModelConfig(depth=3).resolve(60)
    assert default == ModelConfig(depth=3, preset="nanochat-2026").resolve(60)
    assert {"value_embeddings", "smear", "window_pattern"} <= set(default.enabled_features)
    assert ModelConfig(depth=3, family="llama").resolve(60).enabled_features == ()


def test_a_recorded_model_without_a_preset_is_plain_and_other_families_have_none():
    for values, expected in (
        ({"depth": 2}, {"depth": 2, "preset": "nanochat-2025"}),
        ({"preset": "small-2026"}, {"preset": "small-2026"}),
        ({"family": "llama", "preset": "nanochat-2025"}, {"family": "llama"}),
    ):
        name_preset(values)
        assert values == expected
