"""Where a run ran: what its figures depend on. What cannot be found out is None; nothing imports torch."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from fledgling import __version__


def collect_environment() -> dict:
    """Versions, platform, processor, cores, memory (bytes), graphics cards and git commit."""
    return {
        "fledgling": __version__,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if os.name == "posix" else None,
        "gpus": _gpus(),
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _command_output(*command: str) -> str | None:
    """The command's output, or None when it is missing or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return _command_output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


def _gpus() -> list[str]:
    names = _command_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return names.splitlines() if names else []


def _commit() -> str | None:
    """The commit this package runs from, with "+changes" when files differ; None for an installed wheel."""
    here = Path(__file__).resolve().parent
    if _command_output("git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = _command_output("git", "-C", str(here), "rev-parse", "HEAD")
    changed = _command_output("git", "-C", str(here), "status", "--porcelain", "-uno")
    return f"{commit}+changes" if commit and changed else commit
