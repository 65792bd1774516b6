"""Gradients are the same bits every time, compiled and with two threads: a run can be replayed."""

import pytest
import torch

from fledgling.config import ModelConfig
from fledgling.model.build import build_model
from fledgling.runtime.device import DeviceSetup, should_compile
from fledgling.train.loss import next_token_loss
from tests.invariants.losses import batch_of

CPU = torch.device("cpu")
FEATURES = dict.fromkeys(("value_gates", "residual_scalars", "skip_scalars", "back_out", "smear", "head_gates"), True)
MODELS = {
    "all-features": {"family": "fledgling", "value_embeddings": 2, **FEATURES},
    "gpt2": {"family": "gpt2"},
}


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch._dynamo.reset()
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(not should_compile("auto", CPU), reason="torch.compile needs a C++ compiler here")
@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_model_has_the_same_gradients_at_every_call(name, two_threads):
    config = ModelConfig(vocab_size=96, depth=2, width=64, heads=2, kv_heads=2, context=128, **MODELS[name])
    model = build_model(config, DeviceSetup(torch.bfloat16, True, 0.0), CPU)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    batch = batch_of("pretrain", 16, 128, 96, 0)  # an entry occurs 21 times: threads meet at it

    def compute_gradients():
        return torch.autograd.grad(next_token_loss(model, batch), list(model.parameters()))

    first = compute_gradients()
    for _ in range(12):
        for (name, _), one, again in zip(model.named_parameters(), first, compute_gradients(), strict=True):
            assert torch.equal(one, again), name
