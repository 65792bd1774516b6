"""Value embeddings depend on the token alone, and are embeddings to the optimizer."""

import torch

from fledgling.config import ModelConfig
from fledgling.model.transformer import Transformer
from fledgling.optim.roles import assign_role


def test_value_embeddings_depend_on_the_token_and_are_embeddings():
    config = ModelConfig(
        family="fledgling",
        vocab_size=60,
        depth=3,
        width=32,
        heads=4,
        kv_heads=2,
        context=48,
        value_embeddings=2,
        preset="nanochat-2025",
    )
    model = Transformer(config)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    tables = {name: p for name, p in model.named_parameters() if "value_embedding" in name}
    assert list(tables) == [f"blocks.{layer}.attention.value_embedding.weight" for layer in (0, 2)]
    assert all(assign_role(name, tuple(p.shape)) == "embedding" for name, p in tables.items())
    tokens = torch.full((1, 5), 7)
    with torch.no_grad():
        for table in tables.values():
            before = model(tokens)
            table[8] += 1
            assert torch.equal(model(tokens), before)
            table[7] += 1
            assert not torch.allclose(model(tokens), before)
