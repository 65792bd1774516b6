"""A training step away from the CPU: no host read inside, no float64, no (T, T) tensor, few operations.

The meta device stands in for a GPU: torch without CUDA cannot slice or differentiate fake CUDA tensors.
"""

from collections import Counter
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fledgling.config import ModelConfig, OptimizerConfig
from fledgling.data.batch import Batch
from fledgling.model import attention, head_chunk
from fledgling.model.transformer import Transformer
from fledgling.optim import partition
from fledgling.optim.optimizer import Optimizer
from fledgling.optim.schedule import trapezoidal_schedule
from fledgling.runtime.world import World
from fledgling.train import loop
from fledgling.train.loss import next_token_loss
from fledgling.train.stage import Stage

ROWS, TIME, VOCAB = 2, 2048, 65536
READS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero"}


class Watch(TorchDispatchMode):
    """Counts operations, and notes what a step on a GPU must not do."""

    def __init__(self):
        super().__init__()
        self.operations, self.reads, self.faults = Counter(), [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        copied = name == "_to_copy" and (kwargs or {}).get("device") == torch.device("cpu")
        if (name in READS or copied) and any(t.device.type == "meta" for t in given):
            self.reads.append(sum(self.operations.values()))
            return torch.zeros(given[0].shape, device="cpu") if copied else 1.0  # what the host reads is finite
        result = function(*args, **(kwargs or {}))
        self.operations[name] += 1
        for tensor in (t for t in tree_leaves(result) if isinstance(t, torch.Tensor)):
            if tensor.dtype == torch.float64:
                self.faults.append(f"{name} makes float64")
            if list(tensor.shape).count(TIME) > 1:
                self.faults.append(f"{name} makes {tuple(tensor.shape)}")
            if tensor.device.type == "cpu" and tensor.numel() > 1:
                self.faults.append(f"{name} makes {tuple(tensor.shape)} on the CPU")
        return result


def run_step(monkeypatch, depth=2, **options):
    """Runs one step of two micro-batches; returns what was seen of it."""
    monkeypatch.setattr(attention, "flex_sdpa", lambda q, k, v, mask: q + k + v)  # compiled on a real device
    monkeypatch.setitem(head_chunk.CHUNK_LOGITS, "meta", head_chunk.CHUNK_LOGITS["cuda"])
    monkeypatch.setitem(partition.MUON_STACK_VALUES, "meta", partition.MUON_STACK_VALUES["cuda"])
    monkeypatch.setattr(Batch, "target_count", ROWS * TIME)  # counted on the host, before a batch goes to the device
    config = ModelConfig(
        family="fledgling", vocab_size=VOCAB, depth=depth, width=256, heads=2, kv_heads=2, context=TIME, **options
    )
    device = torch.device("meta")
    with device:
        model = Transformer(config, torch.bfloat16)
        model.use_block_masks = True
        optimizer = Optimizer(model, OptimizerConfig(), World(0, 1, 0, device), 1.0, False, torch.bfloat16)
        tokens = torch.zeros(ROWS, TIME, dtype=torch.int64)
        batch = Batch(tokens, tokens.clone(), torch.zeros(ROWS, TIME, dtype=torch.int32))
    stage = Stage("pretrain", 1, None, next_token_loss, partial(trapezoidal_schedule, total_steps=1))
    with Watch() as seen:
        loop.train_step(stage, model, optimizer, [batch, batch], World(0, 1, 0, device))
    return seen


@pytest.mark.parametrize("options", [{}, {"window_pattern": "SL", "window_size": 256}])
def test_a_step_reads_loss_and_norm_once_and_makes_no_mask(monkeypatch, options):
    seen = run_step(monkeypatch, **options)
    assert not seen.faults
    assert len(seen.reads) <= 3  # the norm and both losses
    assert seen.reads[-1] - seen.reads[0] <= 2  # one after another: after backward, before the update


def test_a_layer_takes_few_operations(monkeypatch):
    few, many = (sum(run_step(monkeypatch, depth).operations.values()) for depth in (2, 6))
    assert (many - few) / 4 < 600, (few, many)  # of two micro-batches, views and what a compiler fuses included
