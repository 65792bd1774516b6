"""A decoding step on CUDA: everything stays on the device, and a layer takes few kernels."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from fledgling.config import ModelConfig
from fledgling.config.model import FAMILIES
from fledgling.infer.device_decoder import STATE_COLUMNS, DeviceDecoder
from fledgling.infer.step_graphs import StepGraphs
from fledgling.model.cache import KVCache
from fledgling.model.transformer import Transformer
from tests.invariants.fake_cuda import DeviceWatch, fake_cuda, move_to_fake

MAX_LAYER_KERNELS = 25  # for a token
PLAIN, DEFAULT = {"preset": "nanochat-2025"}, {"preset": "nanochat-2026"}
FEATURES = {"window_pattern": "SL", "window_size": 256, "value_embeddings": 2, "residual_scalars": True}
LATER = {**FEATURES, "value_gates": True, "head_gates": True, "exclusive_attention": True}
STREAM = {"skip_scalars": True, "back_out": True, "smear": True}


def watch_step(monkeypatch, depth=4, rows=8, kernel="varlen", mode="plain", family="fledgling", **options):
    """Uploads rows and runs a step of a bf16 model; returns what was seen."""
    # pinned memory is not faked
    monkeypatch.setattr(DeviceDecoder, "_copy_to_device", lambda self, target, values: target.zero_())
    config = ModelConfig(
        family=family, vocab_size=65536, depth=depth, width=256, heads=4, kv_heads=2, context=2048, **options
    )
    with torch.device("meta"):
        model = Transformer(config, torch.bfloat16).to(torch.bfloat16)
    with fake_cuda() as device, torch.inference_mode():
        move_to_fake(model)
        cache = KVCache(config, torch.bfloat16, device, 256, is_static=True)
        decoder = DeviceDecoder(model, cache, rows, kernel, StepGraphs(captures=False))
        with DeviceWatch() as seen:
            decoder.upload(np.zeros((rows, STATE_COLUMNS), np.int64), np.zeros((rows, decoder.max_blocks), np.int32))
            outputs = decoder.run_step(rows, decoder.max_blocks, mode)
        assert outputs.shape == (2, rows) and outputs.device.type == "cuda"
    return seen


@pytest.mark.parametrize("mode", ["greedy", "plain", "truncated"])
@pytest.mark.parametrize("kernel", ["varlen", "gather"])
def test_a_step_stays_on_the_device(monkeypatch, kernel, mode):
    seen = watch_step(monkeypatch, kernel=kernel, mode=mode)
    assert not seen.faults
    assert sum(seen.kernels.values()) > 50  # the step has really been seen


@pytest.mark.parametrize("kernel", ["varlen", "gather"])
@pytest.mark.parametrize(
    "options",
    [*({"family": family} for family in FAMILIES), FEATURES, STREAM, {"flash_norm": True}, DEFAULT],
    ids=[*FAMILIES, "features", "stream", "flash_norm", "default"],
)
def test_a_layer_takes_few_kernels_a_token(monkeypatch, options, kernel):
    few, many = (watch_step(monkeypatch, depth, kernel=kernel, **{**PLAIN, **options}) for depth in (4, 8))
    assert not many.faults
    layers = (many.kernels - few.kernels).total() / 4
    more = 2 * (options is DEFAULT) + 2 * (options in (FEATURES, DEFAULT) and kernel == "gather")
    assert 10 < layers <= MAX_LAYER_KERNELS + more, many.kernels - few.kernels


def test_what_does_not_belong_in_a_step_is_seen():
    with fake_cuda(), torch.inference_mode(), DeviceWatch() as seen:
        x = torch.ones(3)
        x.double()
        torch.ones(3, device="cpu").exp()
        with pytest.raises(DataDependentOutputException):
            x.sum().item()
    assert len(seen.faults) == 5, seen.faults  # the tensor on the CPU is made, taken, and gives another
