"""Fake tensors on the device `cuda`, on a machine without one, and a count of what would run there.

PyTorch without CUDA makes and computes fake CUDA tensors, but Python's indexing and `copy_` ask for the real device.
`fake_cuda` replaces them by the operations that they consist of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
copy = aten.copy_
READS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero"}
KERNELS = {
    "_varlen_attn": 2,  # flash attention, and zeros for its random state
    "scaled_dot_product_attention": 2,  # with a mask: memory-efficient attention, and an aligned copy of the mask
}
FREE = {"empty", "device", "detach", "alias", "lift_fresh", "_assert_tensor_metadata"}


def index_tensor(tensor: torch.Tensor, index: object) -> torch.Tensor:
    """Returns tensor[index] for numbers, slices, None, ... and one tensor of indices."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if ... in [part if part is ... else None for part in parts]:
        at = next(number for number, part in enumerate(parts) if part is ...)
        given = sum(part is not None and part is not ... for part in parts)
        parts[at : at + 1] = [slice(None)] * (tensor.ndim - given)
    dimension = 0
    for part in parts:
        if part is None:
            tensor, dimension = aten.unsqueeze(tensor, dimension), dimension + 1
        elif isinstance(part, slice):
            if part != slice(None):
                tensor = aten.slice(tensor, dimension, part.start, part.stop, part.step or 1)
            dimension += 1
        elif isinstance(part, int):
            tensor = aten.select(tensor, dimension, part)
        else:
            assert isinstance(part, torch.Tensor)
            tensor = aten.index(tensor, [None] * dimension + [part])
            dimension += part.ndim
    return tensor


class DeviceWatch(TorchDispatchMode):
    """Counts kernels, and notes what a step on a device must not do.

    An operation whose result shares the memory of an argument, and which changes nothing, is a view and not counted. In
    inference mode PyTorch passes composite functions whole: `linear` and `rms_norm` are one kernel each on CUDA.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.faults: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if name in READS:
            self.faults.append(f"{name} reads the device")
        result = function(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        for tensor in made:
            if tensor.dtype == torch.float64:
                self.faults.append(f"{name} makes float64")
            if tensor.device.type == "cpu" and tensor.ndim:
                self.faults.append(f"{name} makes {tuple(tensor.shape)} on the CPU")
        for tensor in given:
            if tensor.device.type == "cpu" and tensor.ndim:
                self.faults.append(f"{name} takes {tuple(tensor.shape)} from the CPU")
        storages = {t.untyped_storage()._cdata for t in given}
        is_view = made and all(t.untyped_storage()._cdata in storages for t in made)
        if name not in FREE and made and not (is_view and not function._schema.is_mutable):
            self.kernels[name] += KERNELS.get(name, 1)
        return result


@contextmanager
def fake_cuda() -> Iterator[torch.device]:
    """Inside, tensors are fake, and what is made without a device is on `cuda`."""
    device = torch.device("cuda", 0)
    methods = {"__getitem__": index_tensor, "copy_": lambda target, source, non_blocking=False: copy(target, source)}
    with mock.patch.multiple(torch.Tensor, **methods), FakeTensorMode(), device:
        yield device


def move_to_fake(model: torch.nn.Module) -> None:
    """Replaces the parameters and buffers of a model, inside `fake_cuda`, by fake ones on the device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = torch.nn.Parameter(fake, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
