"""The commands of `python -m benchmarks`, by what they measure; importing this package registers all of them."""

from benchmarks.commands import checks, hardware, serving, training

__all__ = ["checks", "hardware", "serving", "training"]
