"""A table of devices: peak compute by dtype, memory, bandwidth and power.

Peaks are the vendors' dense (not sparse) numbers with float32 accumulation, which published MFU refers to; float32 is
without TF32. Those of CPUs are measured: a matrix product on two cores (`fledgling doctor` measures yours). Apple
publishes none for its later chips: cores x 128 x 2 x clock. The memory of a Mac is what the system lets a GPU fill, two
thirds or three quarters of all. Watts are the vendor's limit of the whole GPU, which training approaches; of a Mac
that of the whole machine; for a CPU an assumed share of a server. The rest of the machine and cooling are not included.
A price is given only where it is the published run's own; prices change, so pass `--price`.

A GPU is found by its exact product name and its memory (`find_product`): an L40S is no L4, and an A100 has 40 or 80
GiB. Start with `find_device`; `make_own_device` takes a GPU that the table lacks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fledgling.config import UserError, did_you_mean, require_number

_GIB, _TERA, _GIGA = 2**30, 1e12, 1e9
DTYPE_ORDER = ("bfloat16", "float16", "float32")  # of training's choice, among those that a device multiplies
OWN = "own"  # the name of a GPU that is given by its figures
FP8_DEVICES = (  # CUDA from compute capability 8.9, AMD from MI300
    "l4",
    "l40s",
    "rtx4060ti",
    "rtx4090",
    "rtx5090",
    "h100",
    "h100-pcie",
    "h200",
    "b200",
    "mi300x",
)
MEMORY_TOLERANCE = 0.12  # between a GPU's nominal memory and what its driver reports


@dataclass(frozen=True)
class DeviceSpec:
    """A device.

    Attributes:
        name: as `--gpu` takes it.
        peak_flops: FLOP/s in the dtype that training chooses for it.
        memory: bytes.
        watts: of the whole device.
        usd_per_hour: None: unknown.
        bandwidth: bytes per second between the device and its memory; 0: unknown.
        peaks: FLOP/s by dtype.
        kind: the torch device type.
        product: a pattern that the driver's name matches in full, in lower case and without vendors' names.
        is_measured: the peak is a measured product, not a datasheet's.
        training_dtype: that training chooses; "": the first of `DTYPE_ORDER` that it multiplies, which answers have.
        sharers: ranks that share it; FLOP/s, memory, bandwidth and watts are of one of them.
    """

    name: str
    peak_flops: float
    memory: int
    watts: float
    usd_per_hour: float | None = None
    bandwidth: float = 0.0
    peaks: Mapping[str, float] = field(default_factory=dict)
    kind: str = "cuda"
    product: str = ""
    is_measured: bool = False
    training_dtype: str = ""
    sharers: int = 1

    @property
    def dtype(self) -> str:
        """The dtype that training chooses on it."""
        return self.training_dtype or self.answer_dtype

    @property
    def answer_dtype(self) -> str:
        """The dtype that the engine chooses on it."""
        return next(name for name in DTYPE_ORDER if name in self.peaks)

    def compiles(self, setting: str) -> bool:
        """Returns whether training with that `run.compile` is counted as compiled: never on an Apple GPU."""
        return setting != "off" and self.kind != "mps"

    def require_fp8(self) -> None:
        """Raises UserError if its matrix units do not multiply fp8."""
        if self.name != OWN and self.name not in FP8_DEVICES:
            raise UserError(
                f"run.fp8: {self.name} multiplies no fp8; expected one of {', '.join(FP8_DEVICES)}, or run.fp8=false"
            )

    def with_dtype(self, dtype: str) -> DeviceSpec:
        """Returns the device with the peak of a dtype. Raises UserError if it does not multiply that."""
        if dtype not in self.peaks:
            raise UserError(f"run.dtype={dtype}: {self.name} multiplies {', '.join(self.peaks)} only; use one of these")
        return replace(self, peak_flops=self.peaks[dtype])


def _make_device(
    name: str,
    tera: tuple[float, float, float],  # bfloat16, float16, float32; 0: it has none
    gib: float,
    gigabytes: float,
    watts: float,
    product: str = "",
    kind: str = "cuda",
    usd_per_hour: float | None = None,
    training_dtype: str = "",
) -> DeviceSpec:
    peaks = {dtype: peak * _TERA for dtype, peak in zip(DTYPE_ORDER, tera, strict=True) if peak}
    return DeviceSpec(
        name,
        peaks[training_dtype] if training_dtype else next(iter(peaks.values())),
        round(gib * _GIB),
        watts,
        usd_per_hour,
        gigabytes * _GIGA,
        peaks,
        kind,
        product,
        is_measured=kind == "cpu",
        training_dtype=training_dtype,
    )


DEVICES = {
    device.name: device
    for device in (
        _make_device("cpu", (0, 0, 0.195), 8, 38, 30, kind="cpu"),  # two cores with AVX-512, float32
        _make_device("cpu-bf16", (0.873, 0, 0.195), 8, 38, 30, kind="cpu"),  # the same two with AVX-512 BF16
        # Two of an Intel Xeon with AVX-512 BF16 and without matrix units, which trains in float32.
        _make_device("cpu-mixed", (0.166, 0, 0.34), 8, 38, 30, kind="cpu", training_dtype="float32"),
        _make_device("t4", (0, 65, 8.1), 15, 320, 70, "t4"),
        _make_device("l4", (121, 121, 30.3), 22, 300, 72, "l4"),
        _make_device("l40s", (362, 362, 91.6), 45, 864, 350, "l40s"),
        _make_device("a10", (125, 125, 31.2), 22.5, 600, 150, "a10"),
        _make_device("rtx3060", (25.5, 25.5, 12.7), 12, 360, 170, "rtx 3060"),
        _make_device("rtx3090", (71, 71, 35.6), 24, 936, 350, "rtx 3090"),
        _make_device("rtx4060ti", (44.1, 44.1, 22.1), 16, 288, 165, "rtx 4060 ti"),
        _make_device("rtx4090", (165.2, 165.2, 82.6), 24, 1008, 450, "rtx 4090"),
        _make_device("rtx5090", (209.5, 209.5, 104.8), 32, 1792, 575, "rtx 5090"),
        _make_device("a100-40", (312, 312, 19.5), 40, 1555, 400, r"a100( sxm4| pcie)?( 40gb)?( pcie)?"),
        _make_device("a100-80", (312, 312, 19.5), 80, 2039, 400, r"a100( sxm4| pcie)?( 80gb)?( pcie)?"),
        # the published speed run paid $24 an hour for eight
        _make_device("h100", (989, 989, 67), 80, 3350, 700, r"h100( sxm5?)?( 80gb)?( hbm3)?", usd_per_hour=3.0),
        _make_device("h100-pcie", (756, 756, 51.2), 80, 2000, 350, r"h100( 80gb)?( hbm2e)? pcie"),
        _make_device("h200", (989, 989, 67), 141, 4800, 700, r"h200( sxm)?( 141gb)?( hbm3e)?"),
        _make_device("b200", (2250, 2250, 75), 180, 8000, 1000, r"b200( sxm)?( 1[89]\dgb)?( hbm3e)?"),
        _make_device("mi300x", (1307, 1307, 163.4), 192, 5300, 750, r"mi300x( oam)?( vf)?"),
        _make_device("m1", (2.6, 2.6, 2.6), 10.7, 68, 39, "m1", "mps"),  # 16 GiB in all
        _make_device("m2-max", (13.6, 13.6, 13.6), 48, 400, 145, "m2 max", "mps"),  # 64 GiB
        _make_device("m3-max", (14.3, 14.3, 14.3), 48, 400, 145, "m3 max", "mps"),  # 40 cores at 1.4 GHz, 64 GiB
        _make_device("m4-max", (16.2, 16.2, 16.2), 96, 546, 145, "m4 max", "mps"),  # 40 cores at 1.58 GHz, 128 GiB
    )
}
SHORT_NAMES = {"a100": "a100-80", "rtx4060ti-16": "rtx4060ti", "rtx3060-12": "rtx3060"}
_NO_PART_OF_A_NAME = ("nvidia", "geforce", "tesla", "amd", "radeon", "instinct", "apple", "graphics")


def find_device(name: str) -> DeviceSpec:
    """Returns the device with this name; raises UserError for an unknown name."""
    known = SHORT_NAMES.get(name.lower(), name.lower())
    if known not in DEVICES:
        hint = did_you_mean(known, DEVICES) or f": there are {', '.join(DEVICES)}"
        raise UserError(f'unknown GPU "{name}"{hint}; for one of your own `fledgling plan` takes --peak and --memory')
    return DEVICES[known]


def find_product(kind: str, product: str, memory: int = 0) -> DeviceSpec | None:
    """Returns the device that a driver calls `product`, of `memory` bytes (0: unknown); None if the table lacks it.

    Args:
        kind: the torch device type, "cuda" or "mps". The memory of a Mac is not compared: it is sold with any.
    """
    words = product.lower().replace("-", " ").replace("(tm)", "").split()
    name = " ".join(word for word in words if word not in _NO_PART_OF_A_NAME)
    for device in DEVICES.values():
        if device.kind != kind or not device.product or not re.fullmatch(device.product, name):
            continue
        if kind == "mps" or not memory or abs(memory / device.memory - 1) <= MEMORY_TOLERANCE:
            return device
    return None


def make_own_device(
    base: DeviceSpec | None,
    peak_tera: float | None = None,
    bandwidth_giga: float | None = None,
    memory_gib: float | None = None,
    watts: float | None = None,
) -> DeviceSpec:
    """Returns a device given by its figures: those that are None are the base's.

    Args:
        base: a device of the table; None: a GPU that the table lacks.
        peak_tera: TFLOP/s, dense, in the dtype that it trains in.
        bandwidth_giga: GB/s of its memory.
        memory_gib: GiB.

    Raises UserError for values that are not above 0, and without a base where peak or memory is missing.
    """
    figures = {"peak": peak_tera, "bandwidth": bandwidth_giga, "memory": memory_gib, "watts": watts}
    for option, value in figures.items():
        if value is not None:
            require_number(f"--{option}", value, 1e7)
    if base is None:
        if peak_tera is None or memory_gib is None:
            raise UserError("a GPU of your own needs --peak (TFLOP/s) and --memory (GiB); or name one with --gpu")
        base = DeviceSpec(OWN, 0.0, 0, 0.0, peaks={"bfloat16": 0.0})
    if peak_tera is not None:
        peak = peak_tera * _TERA
        base = replace(base, peak_flops=peak, peaks=dict.fromkeys(base.peaks, peak), is_measured=False)
    if memory_gib is not None:
        base = replace(base, memory=round(memory_gib * _GIB))
    if bandwidth_giga is not None:
        base = replace(base, bandwidth=bandwidth_giga * _GIGA)
    return base if watts is None else replace(base, watts=watts)


def share_device(device: DeviceSpec, ranks: int) -> DeviceSpec:
    """Returns what one rank has of a device: all of a GPU, as each has its own, and an equal part of a processor."""
    if device.kind != "cpu" or ranks <= 1:
        return device
    return replace(
        device,
        peak_flops=device.peak_flops / ranks,
        peaks={dtype: peak / ranks for dtype, peak in device.peaks.items()},
        memory=device.memory // ranks,
        bandwidth=device.bandwidth / ranks,
        watts=device.watts / ranks,
        sharers=ranks,
    )
