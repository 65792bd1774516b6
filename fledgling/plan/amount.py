"""An amount of time or money that a user gives: `--minutes`, `--hours`, or `--usd` with the GPU that is paid for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fledgling.config import UserError, require_number
from fledgling.plan import cost
from fledgling.plan.hardware import DeviceSpec

MOST = 1e7  # minutes, hours or US dollars: more is a slip of the hand
UNITS = {"--minutes": 60.0, "--hours": 3600.0}  # seconds
DIGITS = 2  # of an amount that is proposed


@dataclass(frozen=True)
class Budget:
    """An amount of time.

    Attributes:
        seconds: all of it.
        text: as the user gave it.
        option: by which it is given.
        unit_seconds: of one minute, hour, or US dollar.
    """

    seconds: float
    text: str
    option: str = "--minutes"
    unit_seconds: float = UNITS["--minutes"]

    def describe(self, seconds: float) -> str:
        """Returns how at least that much time is given by the same option, e.g. "--hours 0.15"."""
        amount = seconds / self.unit_seconds
        step = 10.0 ** (math.floor(math.log10(amount)) - DIGITS + 1) if amount > 0 else 1.0
        return f"{self.option} {math.ceil(amount / step) * step:.10g}"


def pins_size(overrides: Sequence[str]) -> bool:
    """Returns whether settings fix the size of the model, which a budget then leaves as it is."""
    names = ("model.depth", "model.width", "model.heads", "model.kv_heads", "model=")
    return any(override.startswith(names) for override in overrides)


def read_budget(
    minutes: float | None,
    hours: float | None,
    usd: float | None,
    device: DeviceSpec | None = None,
    ranks: int = 1,
    price: float | None = None,
) -> Budget | None:
    """Returns the budget that the options give; None without one.

    Args:
        minutes: of time; at most one of this and the next two is given.
        hours: of time.
        usd: US dollars.
        device: whose price turns money into time.
        ranks: that are paid for.
        price: US dollars per hour of one device, instead of the device's.

    Raises UserError, in one line, for several at once, for what is no amount, and for money without a price.
    """
    amounts = {"--minutes": minutes, "--hours": hours, "--usd": usd}
    given = {name: value for name, value in amounts.items() if value is not None}
    if not given:
        return None
    if len(given) > 1:
        raise UserError(f"{' and '.join(f'{name} {value:g}' for name, value in given.items())}: give one of them")
    ((option, value),) = given.items()
    require_number(option, value, MOST)
    if option != "--usd":
        return Budget(value * UNITS[option], f"{option} {value:g}", option, UNITS[option])
    if device is None:
        raise UserError(f"--usd {value:g} buys time on a GPU: name it with --gpu, or give --minutes or --hours")
    if price is not None:
        require_number("--price", price, MOST)
    hourly = cost.estimate_usd(1.0, device, ranks, price)
    if not hourly:
        raise UserError(
            f"--usd {value:g}: the price of {device.name} is not known; give it with --price, in USD an hour"
        )
    text, unit = f"--usd {value:g} at ${hourly:g} an hour", UNITS["--hours"] / hourly
    if value * unit > MOST * UNITS["--hours"]:
        raise UserError(f"{text} are {value / hourly:g} hours: expected at most {MOST:,.10g}")
    return Budget(value * unit, text, option, unit)
