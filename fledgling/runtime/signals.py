"""Signals that request a stop: SIGINT, SIGTERM and SIGUSR1 (sent by SLURM some time before the limit).

After the first signal the training loop finishes its step, saves and exits. The second signal ends the process at
once. A thread reads the signals from the interpreter's wakeup pipe, so the second signal also works while the main
thread waits in a collective for a rank that never answers.

The ranks agree in the training loop, not here: it sums the stop requests of all ranks, so that all stop at one step.
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
ECHO_WINDOW = 1.0  # seconds: a scheduler signals all processes and the launcher forwards its own, which counts once
SHORT_ECHO_WINDOW = 0.25  # without a launcher: `timeout` signals its child and then its group, at once


@contextmanager
def catch_stop_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether a signal has requested a stop.

    A second signal ends the process with exit code 128 + its number. One within SHORT_ECHO_WINDOW seconds, in a rank of
    a launcher ECHO_WINDOW, is ignored. Outside of the main thread no handler is installed.
    """
    echo_window = ECHO_WINDOW if is_launched_rank() else SHORT_ECHO_WINDOW
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    request_times: list[float] = []
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)

    def read_signals() -> None:
        while number := os.read(read_end, 1)[0]:
            if number not in STOP_SIGNALS or (request_times and time.monotonic() - request_times[0] < echo_window):
                continue
            if request_times:
                _exit_now(number)
            request_times.append(time.monotonic())

    previous_handlers = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
    previous_wakeup = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    thread = threading.Thread(target=read_signals, name="fledgling-signals", daemon=True)
    thread.start()
    try:
        yield lambda: bool(request_times)
    finally:
        signal.set_wakeup_fd(previous_wakeup)
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
        os.write(write_end, b"\0")
        thread.join()
        os.close(read_end)
        os.close(write_end)


def _exit_now(number: int) -> None:
    """Ends the process with 128 + `number`; shows a terminal's cursor again."""
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
    print(f"{show_cursor}stopped at once by a second {signal.Signals(number).name}", file=sys.stderr, flush=True)
    os._exit(128 + number)
