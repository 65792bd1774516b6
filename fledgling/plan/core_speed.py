"""How fast one core of this machine does what a run does besides training: starts, tokenizing, compressing.

A model's FLOP/s say little of it: a small model reaches a fiftieth of what a large one reaches on the same processor.
"""

from __future__ import annotations

import lzma
import random
import time

REPEATS = 5
WARMUP = 1  # the first imports a module and fills the caches
ITERATIONS = 100_000
TEXT_BYTES = 128 << 10
# Of `REPEATS`, on one core of the two of a Xeon (AVX-512, 2.3 GHz) that the constants of `stage_seconds` are from.
REFERENCE_SECONDS = 0.122


def measure_core_share(repeats: int = REPEATS) -> float:
    """Returns the time of a core's work here, as a share of the reference machine's; takes about a seventh of a second.

    The work is half Python, half the search for matches of a compressor, on one core. Other processes on it count.
    """
    text = make_text()
    times = [time_work(text) for _ in range(WARMUP + repeats)]
    return sum(times[WARMUP:]) / repeats * REPEATS / REFERENCE_SECONDS


def make_text() -> bytes:
    """Returns the same words on every machine."""
    draw = random.Random(0)
    words = [bytes(draw.choices(b"abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(2_000)]
    return b" ".join(draw.choices(words, k=TEXT_BYTES // 6))[:TEXT_BYTES]


def time_work(text: bytes) -> float:
    """Returns the seconds of the work, once."""
    start = time.perf_counter()
    lzma.compress(text, preset=1)
    counts: dict[int, int] = {}
    for number in range(ITERATIONS):
        counts[number % 977] = counts.get(number % 977, 0) + number
    return time.perf_counter() - start
