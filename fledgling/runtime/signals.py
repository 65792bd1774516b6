"""Signals that ask a run to stop: SIGINT, SIGTERM, and SIGUSR1 (SLURM's, some time before the end).

The one idea: the first asks, and the loop saves and leaves after its step; the second leaves at once. A thread reads
them from a pipe that the interpreter writes into whatever the main thread does, so that "at once" holds within an
exchange with a rank that will never answer, too.

What it is not: it does not make ranks agree. The loop sums the wishes of all ranks, so that they stop at one step.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fledgling.runtime.world import is_launched_rank

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
ECHO_WINDOW = (
    1.0  # seconds: under an agent, signals so close are one, sent by the scheduler to all and forwarded by the agent
)


@contextmanager
def catch_stop_signals() -> Iterator[Callable[[], bool]]:
    """Within it, gives a function that says whether a signal has asked to stop.

    A second one ends the process with 128 + the signal's number; under an agent, one within SAME seconds is an echo.
    """
    same = ECHO_WINDOW if is_launched_rank() else 0.0
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[float] = []
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def listen() -> None:
        while number := os.read(reading, 1)[0]:
            if number not in STOP_SIGNALS or (asked and time.monotonic() - asked[0] < same):
                continue
            if asked:
                _exit_now(number)
            asked.append(time.monotonic())

    before = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=listen, name="fledgling-stops", daemon=True)
    thread.start()
    try:
        yield lambda: bool(asked)
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(writing, b"\0")
        thread.join()
        os.close(reading)
        os.close(writing)


def _exit_now(number: int) -> None:
    """End the process now; a terminal gets its cursor back."""
    shown = "\x1b[?25h" if sys.stderr.isatty() else ""
    print(f"{shown}left at once after a second {signal.Signals(number).name}", file=sys.stderr, flush=True)
    os._exit(128 + number)
