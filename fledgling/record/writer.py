"""A writer beside the work: one background thread that writes a checkpoint while training goes on.

The one idea: one job at a time. Who hands over the next one waits for the one before, so a slow disk slows training
down and never fills memory; and a job that failed fails again in the thread that waits for it.

What it is not: a queue, and it knows nothing of checkpoints. The files and their protocol are in checkpoint.py, the
copy of what is written in `fledgling.train.saver`.
"""

import threading
import time
from collections.abc import Callable


class BackgroundWriter:
    """Runs one job at a time in a thread of its own.

    The thread is a daemon: a process that must leave at once leaves a half-written temporary directory, which no reader
    takes for a checkpoint and the next save sweeps away.
    """

    def __init__(self) -> None:
        self.last_job_seconds = 0.0  # of the last job that came through
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether a job has failed and nobody has waited for it yet."""
        return self._error is not None

    @property
    def busy(self) -> bool:
        """Whether a job is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, job: Callable[[], object]) -> None:
        """Begin `job` once the one before has ended; raises what that one raised."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(job,), name="fledgling-writer", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is under way; raises, once, what the last job raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, job: Callable[[], object]) -> None:
        began = time.perf_counter()
        try:
            job()
        except BaseException as error:
            self._error = error
        else:
            self.last_job_seconds = time.perf_counter() - began
