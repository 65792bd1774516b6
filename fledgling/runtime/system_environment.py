"""The machine and software of a run, on which its metrics depend. Unknown values are None; imports no torch."""

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from fledgling import __version__
from fledgling.runtime.cores import count_cores
from fledgling.runtime.machine_memory import get_total_memory


def collect_environment() -> dict:
    """Returns versions, platform, processor, cores, memory (bytes), GPUs and git commit.

    What commands have to be run for is found once in a process.
    """
    return {
        "fledgling": __version__,
        "python": platform.python_version(),
        "torch": _package_version("torch"),
        "platform": platform.platform(),
        "cpu": read_cpu_name(),
        "cores": count_cores(),
        "memory": get_total_memory(),
        "gpus": _gpu_names(),
        "commit": _git_commit(),
    }


def _package_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _command_output(*command: str) -> str | None:
    """Returns the output of `command`, or None when it is missing or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


@functools.cache
def read_cpu_name() -> str:
    """Returns the processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return _command_output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


@functools.cache
def _gpu_names() -> list[str]:
    names = _command_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return names.splitlines() if names else []


@functools.cache
def _git_commit() -> str | None:
    """Returns the commit that this package runs from, with "+changes" when files differ; None for a wheel.

    It is that of the first call: a process runs the code that it has loaded.
    """
    git = ("git", "-C", str(Path(__file__).resolve().parent))
    if _command_output(*git, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = _command_output(*git, "rev-parse", "HEAD")
    changes = _command_output(*git, "status", "--porcelain", "-uno")
    return f"{commit}+changes" if commit and changes else commit
