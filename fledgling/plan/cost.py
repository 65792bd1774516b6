"""Converts FLOPs to hours, and hours to energy and money: estimates for an explicit or assumed utilization."""

from __future__ import annotations

import math

from fledgling.config import UserError
from fledgling.plan.hardware import DeviceSpec

# Model FLOPs utilization assumed by default, of a GPU's datasheet: the published depth-20 run reached 47 to 49 % on
# eight H100, this package 50.9 % at depth 20 and 42.8 % at depth 12 on one (docs/gpu.md); two CPU cores reached 29 to
# 45 % of their measured matrix-product throughput.
ASSUMED_MFU = {"gpu": 0.45, "cpu": 0.35}
# Of the utilization of a compiled step, what one that is not compiled reaches on a CPU: a small model that is trained
# in full, on two cores of an EPYC: .81, .71 and .77 at depths 4, 3 and 2.
EAGER_SHARE = 0.77
# The same of an adapter's step: LoRA on the quickstart, of 54/66 of the FLOPs of full fine-tuning, took 246 s where
# that took 125 (docs/adapters.md, "Measured").
ADAPTER_EAGER_SHARE = 0.42


def require_utilization(mfu: float | None) -> None:
    """Raises UserError for a given utilization that is no share."""
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(f"mfu: got {mfu:g}, expected a share above 0 and at most 1, for example 0.45")


def require_price(price: float) -> float:
    """Returns a price; raises UserError unless it is an amount of dollars an hour."""
    if not 0 <= price < math.inf:
        raise UserError(f"price: got {price:g}, expected dollars an hour, at least 0 and finite")
    return price


def assumed_mfu(device: DeviceSpec) -> float:
    """Returns the utilization that is assumed for a device."""
    return ASSUMED_MFU["cpu" if device.kind == "cpu" else "gpu"]


def find_eager_share(device: str, compiled: bool, has_adapter: bool = False) -> float:
    """Returns the utilization of a step as a share of a compiled one's: 1 where it is, and on GPUs, which have none.

    Args:
        device: torch's type of it.
        compiled: whether the step is.
        has_adapter: whether it trains an adapter instead of the weights.
    """
    if device != "cpu" or compiled:
        return 1.0
    return ADAPTER_EAGER_SHARE if has_adapter else EAGER_SHARE


def estimate_hours(flops: float, device: DeviceSpec, ranks: int = 1, mfu: float | None = None) -> float:
    """Returns the hours that `ranks` devices need for `flops` model FLOPs at utilization `mfu` in (0, 1]."""
    return flops / (device.peak_flops * ranks * (mfu or assumed_mfu(device))) / 3600


def estimate_usd(hours: float, device: DeviceSpec, ranks: int = 1, price: float | None = None) -> float | None:
    """Returns US dollars for `ranks` devices over `hours` hours; `price` is dollars per hour for one device.

    Ranks that share a device pay for it once. None if neither `price` nor the device table has a price.
    """
    hourly = device.usd_per_hour if price is None else price
    return None if hourly is None else hours * ranks / device.sharers * hourly


def estimate_kwh(hours: float, device: DeviceSpec, ranks: int = 1) -> float:
    """Returns the energy of `ranks` devices at their power limit over `hours`, without the rest of the machine."""
    return hours * ranks * device.watts / 1000
