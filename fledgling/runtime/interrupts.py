"""Ctrl-C that is never lost: KeyboardInterrupt is raised between imports, not within one.

Modules in C and Rust that import others swallow an exception there: torch imports numpy, and gigatoken imports awkward.
The command would go on as if nothing had been pressed, or fail later with a module of which half is there.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

RETRY_SECONDS = 0.05  # until an interrupt within an import comes again
LONGEST_IMPORT = 10.0  # seconds that an interrupt waits: a user's module may do anything
_IMPORT_CODE = "<frozen importlib"  # begins the file names of Python's import machinery


def interrupt_between_imports() -> None:
    """Installs the handler of SIGINT, in the main thread and where it is still that of Python."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _Interrupter())


class _Interrupter:
    """The handler. Within an import it sends the signal again a little later; one is on its way at most."""

    def __init__(self) -> None:
        self.pressed: float | None = None  # when the interrupt that waits came first
        self.retry: threading.Timer | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raises KeyboardInterrupt, or lets it wait."""
        now = time.monotonic()
        self.pressed = now if self.pressed is None else self.pressed
        if _is_importing(frame) and now - self.pressed < LONGEST_IMPORT:
            if self.retry is None:
                self.retry = threading.Timer(RETRY_SECONDS, self._send_again, (number,))
                self.retry.daemon = True
                self.retry.start()
            return
        if self.retry is not None:
            self.retry.cancel()
        self.pressed = self.retry = None
        raise KeyboardInterrupt

    def _send_again(self, number: int) -> None:
        self.retry = None
        os.kill(os.getpid(), number)


def _is_importing(frame: FrameType | None) -> bool:
    """Returns whether a frame, or one that called it, is of an import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(_IMPORT_CODE):
            return True
        frame = frame.f_back
    return False
