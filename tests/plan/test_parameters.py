"""Parameter counts of published models; `tests/invariants/test_planner.py` compares them with the tensors."""

from dataclasses import replace

import pytest

from fledgling.config import ModelConfig
from fledgling.plan.parameters import (
    count_law_parameters,
    count_matrix_parameters,
    count_parameters,
    parameter_formula,
    parameter_shapes,
)

GPT2 = ModelConfig(50257, 12, 768, 12, 12, 1024, family="gpt2")
LLAMA_7B = ModelConfig(32000, 32, 4096, 32, 32, 4096, family="llama", intermediate_size=11008, tie_embeddings=False)
DEPTH_20 = ModelConfig(65536, 20, 1280, 10, 10, 2048, preset="nanochat-2025")


@pytest.mark.parametrize(
    ("config", "total"), [(GPT2, 124_439_808), (LLAMA_7B, 6_738_415_616), (DEPTH_20, 560_988_160)], ids=str
)
def test_published_models_have_their_published_size(config, total):
    assert count_parameters(config)["total"] == total


def test_matrices_are_those_of_the_blocks():
    assert count_matrix_parameters(DEPTH_20) == 20 * 12 * 1280**2
    assert count_matrix_parameters(LLAMA_7B) == 32 * (4 * 4096**2 + 3 * 4096 * 11008)


def test_the_law_of_loss_counts_a_model_with_value_embeddings_as_large_as_one_without():
    plain = ModelConfig(vocab_size=1024, depth=4, preset="nanochat-2025")
    more = replace(plain, value_embeddings=2)
    assert count_law_parameters(more) == count_law_parameters(plain) == count_parameters(plain)["total"]
    assert count_parameters(more)["total"] == count_parameters(plain)["total"] + 2 * 1024 * 256


def test_a_tied_head_has_one_name():
    shapes = parameter_shapes(GPT2)
    assert shapes["head.weight"] == (50257, 768) and "embedding.weight" not in shapes
    assert {"embedding.weight", "head.weight"} <= set(parameter_shapes(DEPTH_20))


def test_the_formula_has_the_terms_of_the_model():
    assert parameter_formula(DEPTH_20) == ("V E + L (4 E^2 + 2 E F) + V E", "2 V E + 12 L E^2")
    assert "T E" in parameter_formula(GPT2)[0]
