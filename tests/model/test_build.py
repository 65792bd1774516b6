"""A built model: its blocks are compiled for every kind of layer and shape, with casts and recomputation inside."""

import pytest
import torch

from fledgling.config import ModelConfig
from fledgling.data.batch import Batch
from fledgling.model import build
from fledgling.model.linear import cast_weights
from fledgling.model.logprob import EAGER
from fledgling.runtime.device import DeviceSetup
from fledgling.train.loss import logprobs_from_hidden, next_token_loss

pytestmark = pytest.mark.usefixtures("seeded")
CPU = torch.device("cpu")
FEATURES = {"window_pattern": "SSSL", "window_size": 8, "value_embeddings": 2, "residual_scalars": True}


def build_on_cpu(monkeypatch, backend, depth=1, **options):
    """Returns a model whose blocks are compiled by `backend`, and what counts their graphs."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter, compile_module = CompileCounterWithBackend(backend), torch.nn.Module.compile
    torch._dynamo.reset()
    monkeypatch.setattr(build, "compile_logprob_kernels", lambda device: EAGER)
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **settings: compile_module(self, backend=counter, **settings)
    )
    sizes = {"vocab_size": 64, "depth": depth, "width": 32, "heads": 2, "kv_heads": 2, "context": 32}
    config = ModelConfig(family="fledgling", **sizes, **options)
    model = build.build_model(config, DeviceSetup(torch.bfloat16, True, 0.0), CPU)
    model.initialize(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    return model, counter


def test_windows_value_embeddings_and_shapes_stay_below_the_limit_of_recompilation(monkeypatch):
    model, counter = build_on_cpu(monkeypatch, "eager", depth=4, **FEATURES)
    shapes = [(2, 32), (1, 32), (2, 16), (1, 16)]
    for rows, time in (*shapes, *shapes):
        model(torch.zeros(rows, time, dtype=torch.long))
    layers = [block.attention for block in model.blocks]
    kinds = {(layer.window_size, layer.value_embedding is None) for layer in layers}
    assert len(kinds) == 3 and counter.frame_count == len(kinds) * len(shapes)


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_take_casts_and_recompute(monkeypatch, recompute):
    model, counter = build_on_cpu(monkeypatch, "aot_eager")
    tokens, found = torch.randint(64, (2, 32)), []
    for compiled in (False, True):
        model.recompute = compiled and recompute
        blocks = [block._compiled_call_impl for block in model.blocks]
        for block in model.blocks:
            block._compiled_call_impl = block._compiled_call_impl if compiled else None
        with cast_weights(model.blocks, torch.bfloat16):
            loss = model.compute_logits(model(tokens)).square().mean()
            found.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
        for block, call in zip(model.blocks, blocks, strict=True):
            block._compiled_call_impl = call
    assert counter.frame_count == 1
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=0.02, atol=1e-4)


def test_a_model_that_is_not_compiled_keeps_eager_kernels_next_to_one_that_is(monkeypatch):
    """A stage with run.compile=off after compiled ones, in one process or in processes of their own: the same bits."""
    compiled, calls = torch.compile, []

    def count_calls(function, **settings):
        return lambda *given: (calls.append(function.__name__), function(*given))[1]

    config = ModelConfig(family="fledgling", vocab_size=64, depth=1, width=32, heads=2, kv_heads=2, context=32)
    batch = Batch(*torch.randint(64, (2, 1, 8)))
    monkeypatch.setattr(torch, "compile", count_calls)
    models = [build.build_model(config, DeviceSetup(torch.float32, is_on, 0.0), CPU) for is_on in (True, False)]
    monkeypatch.setattr(torch, "compile", compiled)
    assert not calls
    for model, expected in zip(models[::-1], ([], ["softcap_exp"] * 2), strict=True):
        model.initialize(0)
        for block in model.blocks:
            block._compiled_call_impl = None
        hidden = model(batch.tokens)
        next_token_loss(model, batch)
        logprobs_from_hidden(model, hidden, batch.targets)
        assert calls == expected
