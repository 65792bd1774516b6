"""How busy the machine is on which the watcher runs: processors, memory, GPUs. Reads /proc and nvidia-smi."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from fledgling.runtime.machine_memory import get_available_memory, get_total_memory

GPU_QUERY = "name,utilization.gpu,memory.used,memory.total,power.draw,temperature.gpu"
GPU_SECONDS = 5.0  # between two calls of nvidia-smi
MAX_GPUS = 16


class MachineLoad:
    """The load since the last call."""

    def __init__(self) -> None:
        self._busy_total = _read_cpu_times()
        self._gpus: list[dict[str, Any]] = []
        self._gpus_read = float("-inf")

    def read(self) -> dict[str, Any]:
        """Returns the share of busy processors since the last call, memory in bytes, and the GPUs; None: unknown."""
        before, now = self._busy_total, _read_cpu_times()
        self._busy_total = now
        busy = (now[0] - before[0]) / (now[1] - before[1]) if before and now and now[1] > before[1] else None
        return {
            "cpu": busy,
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "memory_total": get_total_memory(),
            "memory_free": get_available_memory(),
            "gpus": self._read_gpus(),
        }

    def _read_gpus(self) -> list[dict[str, Any]]:
        if time.monotonic() - self._gpus_read > GPU_SECONDS and shutil.which("nvidia-smi"):
            self._gpus_read = time.monotonic()
            command = ["nvidia-smi", f"--query-gpu={GPU_QUERY}", "--format=csv,noheader,nounits"]
            try:
                output = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout
            except (OSError, subprocess.TimeoutExpired):
                output = ""
            self._gpus = [gpu for line in output.splitlines()[:MAX_GPUS] if (gpu := parse_gpu(line))]
        return self._gpus


def parse_gpu(line: str) -> dict[str, Any] | None:
    """Returns a line of nvidia-smi: name, busy share, bytes, watts, degrees Celsius; None for what is missing."""
    values = [value.strip() for value in line.split(",")]
    if len(values) != len(GPU_QUERY.split(",")):
        return None
    numbers = [float(value) if value.replace(".", "", 1).isdigit() else None for value in values[1:]]
    percent, used, total, watts, celsius = numbers
    return {
        "name": values[0][:80],
        "busy": None if percent is None else percent / 100,
        "memory_used": None if used is None else used * 2**20,
        "memory_total": None if total is None else total * 2**20,
        "watts": watts,
        "celsius": celsius,
    }


def _read_cpu_times() -> tuple[float, float] | None:
    """Returns (busy, all) processor time so far, in ticks."""
    try:
        ticks = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # but idle and waiting for a disk
