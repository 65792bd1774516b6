"""Accelerators by torch's device type: which there are, waiting for one, its memory.

A GPU of AMD (ROCm) has the type "cuda" in PyTorch and takes every path of it. No accelerator is given a float64: "mps"
has none, and some GPUs of "xpu" have none.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ACCELERATORS = ("cuda", "xpu", "mps")  # in the order in which "auto" looks for them


def is_available(kind: str) -> bool:
    """Returns whether this machine has a device of a type; "cpu" is always there."""
    import torch

    if kind == "mps":
        return torch.backends.mps.is_available()
    return kind == "cpu" or getattr(torch, kind).is_available()


def count_devices(kind: str) -> int:
    """Returns the number of devices of a type; Apple GPUs and the CPU count as one."""
    import torch

    return getattr(torch, kind).device_count() if kind in ("cuda", "xpu") else 1


def allow_expandable_segments() -> None:
    """Lets CUDA's allocator grow its segments, so that less is lost between sizes of batches; before its first use.

    What the user has set stays. Only Linux has it.
    """
    if sys.platform == "linux" and "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished all that is queued; a CPU queues nothing."""
    import torch

    if device.type != "cpu":
        torch.get_device_module(device.type).synchronize()


class PendingRead:
    """The values of a tensor, which the device may still compute; `read` waits for them, and for nothing queued later.

    Made right after the operation that computes the tensor. CUDA copies to pinned memory in the meantime; other devices
    have no copy that runs next to them, and wait here.

    Args:
        values: of any shape.
    """

    def __init__(self, values: torch.Tensor) -> None:
        import torch

        self.event: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self.host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self.host.copy_(values, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
        else:
            self.host = values.to("cpu", copy=True)

    def read(self) -> torch.Tensor:
        """Returns the values in host memory."""
        if self.event is not None:
            self.event.synchronize()
        return self.host


def total_memory(device: torch.device) -> int:
    """Returns the bytes of an accelerator; of an Apple GPU what the system recommends to fill at most."""
    import torch

    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return torch.get_device_module(device.type).get_device_properties(device).total_memory
