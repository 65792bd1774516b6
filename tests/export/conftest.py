"""Small random models of every family, and a tokenizer with control tokens."""

import pytest
import torch

from fledgling.config import ModelConfig
from fledgling.model.transformer import Transformer
from fledgling.text.tokenizer import Tokenizer

TEXT = ["the quick brown fox jumps over the lazy dog 12 times, again and again " * 9]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """330 entries, single digits."""
    return Tokenizer.train(TEXT, vocab_size=330)


def random_model(config: ModelConfig, seed: int = 0, scale: float = 0.1) -> Transformer:
    """Returns a model with random weights: norms around 1, biases and zero-initialised matrices around 0."""
    model = Transformer(config)
    model.initialize(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in model.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * scale
    return model.eval()


@pytest.fixture
def make():
    """make(family, **fields): a random model of that family with 330 entries without other optional features."""

    def made(family: str, **fields) -> Transformer:
        sizes = {"vocab_size": 330, "depth": 3, "width": 64, "heads": 4, "kv_heads": 4, "context": 128}
        plain = {"preset": "nanochat-2025"} if family == "fledgling" else {}
        return random_model(ModelConfig(family=family, **(plain | sizes | fields)))

    return made
