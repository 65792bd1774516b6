"""A small model whose weights are all random."""

import torch

from fledgling.config import ModelConfig
from fledgling.model.transformer import Transformer


def make_random_model(vocab_size: int, seed: int = 1, context: int = 256, family: str = "fledgling") -> Transformer:
    kv_heads = 4 if family == "gpt2" else 2
    sizes = {"vocab_size": vocab_size, "depth": 2, "width": 64, "heads": 4, "kv_heads": kv_heads, "context": context}
    sizes["preset"] = "nanochat-2025"
    model = Transformer(ModelConfig(family=family, **sizes))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model
