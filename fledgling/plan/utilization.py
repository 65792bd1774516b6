"""The utilization that a plan assumes, where it comes from, and the peak that it is a share of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fledgling.plan import cost, hardware, measured_speed
from fledgling.plan.training_step import TrainingStep


def choose_utilization(
    device: hardware.DeviceSpec,
    mfu: float | None,
    peak_flops: float | None,
    flops_per_token: float,
    micro_batch_tokens: int,
    compiled: bool,
) -> tuple[dict[str, Any], hardware.DeviceSpec]:
    """Returns the utilization to assume with its source, and the device with the peak that it refers to.

    `mfu` is of that peak. `mfu_datasheet` is of the vendor's dense peak, as published figures are (None: the table has
    none), `mfu_product` of a matrix product measured on this machine (None: none was measured).

    Args:
        device: of the table.
        mfu: given by the user.
        peak_flops: FLOP/s measured by the run that is planned: then all shares are of this peak, as the shares that the
            run records. None: of the table's peak, or of the benchmark's.
        flops_per_token: of the planned model, in training.
        micro_batch_tokens: of a forward and backward pass.
        compiled: whether the step is; what was measured of one that is not says nothing of it.
    """
    datasheet, source = None if device.is_measured else device.peak_flops, "table"
    if peak_flops:
        device, source = replace(device, peak_flops=peak_flops), "run"
    measured = measured_speed.load_speed(device.name, flops_per_token, micro_batch_tokens, compiled)
    assumed = cost.assumed_mfu(device) * cost.find_eager_share(device.kind, compiled)
    utilization: dict[str, Any] = {"mfu": assumed, "mfu_source": "table"}
    if mfu is not None:
        utilization = {"mfu": mfu, "mfu_source": "given"}
    elif measured is not None:
        measured_peak = measured.peak_flops / device.sharers
        reached = measured.mfu * measured_peak
        if not peak_flops or reached > peak_flops:  # a run's peak below what the benchmark reached was measured too low
            device, source = replace(device, peak_flops=measured_peak), "benchmark"
        of = f"{measured.model}, {measured.date}"
        utilization = {"mfu": reached / device.peak_flops, "mfu_source": "measured", "mfu_of": of}
    share = utilization["mfu"]
    utilization |= {
        "peak_source": source,
        "mfu_datasheet": datasheet and share * device.peak_flops / datasheet,
        "mfu_product": share if source != "table" else None,
        "datasheet_flops": datasheet,
    }
    return utilization, device


def find_adapter_share(device: hardware.DeviceSpec, flops_per_token: float, step: TrainingStep) -> float | None:
    """Returns the share of the device's peak that `bench train` measured in a step of an adapter; None: it did not.

    Args:
        device: with the peak that shares are of.
        flops_per_token: of the step.
        step: None is returned for one that trains the weights, whose speed `choose_utilization` finds.
    """
    if step.adapter is None:
        return None
    measured = measured_speed.load_speed(device.name, flops_per_token, step.tokens, step.compiled)
    if measured is None:
        return None
    return min(1.0, measured.mfu * measured.peak_flops / device.sharers / device.peak_flops)
