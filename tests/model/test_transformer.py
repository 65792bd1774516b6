"""The decoder: its size, what attention sees, and what its configuration refuses."""

import pytest
import torch

from fledgling.config import ModelConfig, UserError
from fledgling.model.transformer import Transformer


def random_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """A model whose zero-initialised matrices are random too, so that every weight matters."""
    model = Transformer(config)
    model.initialize(seed)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_d20_has_the_published_number_of_parameters():
    with torch.device("meta"):
        assert Transformer(ModelConfig(65536, 20, 1280, 10, 10, 2048)).count_parameters() == 560_988_160


def test_documents_do_not_see_each_other():
    model = random_model(ModelConfig(50, 2, 64, 2, 2, 64))
    tokens = torch.randint(50, (1, 40))
    documents = (torch.arange(40) >= 15).int()[None]
    changed = tokens.clone()
    changed[0, :15] = (changed[0, :15] + 7) % 50
    with torch.no_grad():
        before, after = model(tokens, documents), model(changed, documents)
    assert torch.equal(before[0, 15:], after[0, 15:])
    assert not torch.allclose(before[0, :15], after[0, :15])


def test_the_future_is_not_seen():
    model = random_model(ModelConfig(50, 2, 64, 2, 1, 300))
    tokens = torch.randint(50, (1, 280))
    changed = tokens.clone()
    changed[0, 200:] = 3
    with torch.no_grad():
        assert torch.equal(model(tokens)[0, :200], model(changed)[0, :200])


def test_the_same_seed_gives_the_same_weights():
    one, two, other = (Transformer(ModelConfig(50, 1, 64, 2, 2, 8)) for _ in range(3))
    one.initialize(3), two.initialize(3), other.initialize(4)
    assert torch.equal(one.embedding.weight, two.embedding.weight)
    assert not torch.equal(one.embedding.weight, other.embedding.weight)


@pytest.mark.parametrize(
    "sizes, word",
    [
        ((50, 1, 100, 3, 3, 8), "heads"),
        ((50, 1, 96, 4, 3, 8), "kv_heads"),
        ((0, 1, 64, 2, 2, 8), "vocab_size"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, word):
    with pytest.raises(UserError, match=word):
        ModelConfig(*sizes)
