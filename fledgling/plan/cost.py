"""FLOPs become hours, hours become money: an estimate that says which utilization it assumes."""

from __future__ import annotations

from fledgling.plan.hardware import DeviceSpec

# Model FLOPs utilization that is assumed when none is given: the published depth-20 run reached 47 to 49 %
# on eight H100; two processor cores reached 29 to 45 % of their measured matrix product.
ASSUMED_MFU = {"gpu": 0.45, "cpu": 0.35}


def assumed_mfu(device: DeviceSpec) -> float:
    """Return the utilization that is assumed for a device."""
    return ASSUMED_MFU["cpu" if device.name.startswith("cpu") else "gpu"]


def estimate_hours(flops: float, device: DeviceSpec, ranks: int = 1, mfu: float | None = None) -> float:
    """Return the hours that `ranks` devices need for so many model FLOPs, utilized to `mfu` in (0, 1]."""
    return flops / (device.peak_flops * ranks * (mfu or assumed_mfu(device))) / 3600


def estimate_usd(hours: float, device: DeviceSpec, ranks: int = 1, price: float | None = None) -> float | None:
    """Return US dollars for `ranks` devices over so many hours; `price` is dollars an hour for one.

    None where no price is given and the table has none.
    """
    hourly = device.usd_per_hour if price is None else price
    return None if hourly is None else hours * ranks * hourly


def estimate_kwh(hours: float, device: DeviceSpec, ranks: int = 1) -> float:
    """Return the energy of `ranks` devices at their limit over so many hours; the machine around them adds to it."""
    return hours * ranks * device.watts / 1000
