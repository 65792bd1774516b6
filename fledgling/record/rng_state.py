"""torch's random state as tensors, as a checkpoint stores it: of the CPU and of the accelerator."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def get_rng_state(device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Returns torch's random state as a group of uint8 tensors: "cpu", and the accelerator's under its device type."""
    device = torch.device(device)
    group = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        group[device.type] = torch.get_device_module(device.type).get_rng_state(*_device_argument(device))
    return group


def set_rng_state(group: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
    """Restores what `get_rng_state` returned. An accelerator's state is ignored on another kind of device."""
    device = torch.device(device)
    torch.set_rng_state(group["cpu"].cpu())
    if device.type != "cpu" and device.type in group:
        state = group[device.type].cpu()
        torch.get_device_module(device.type).set_rng_state(state, *_device_argument(device))


def _device_argument(device: torch.device) -> tuple[torch.device, ...]:
    """Returns the argument that says which device, or none: there is one Apple GPU."""
    return () if device.type == "mps" else (device,)
