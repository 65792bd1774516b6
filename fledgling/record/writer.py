"""A background thread that writes a checkpoint while training continues.

It runs one job at a time. `start` waits for the job before, so a slow disk slows training down and never fills memory.
A job's error is raised again in the thread that waits for it. What is written is decided in checkpoint.py; the copy of
weights and state is made in `fledgling.train.saver`.
"""

import threading
import time
from collections.abc import Callable


class BackgroundWriter:
    """Runs one job at a time in its own thread.

    The thread is a daemon: a process that exits at once leaves a half-written temporary directory, which no reader
    takes for a checkpoint and the next save deletes.
    """

    def __init__(self) -> None:
        self.last_job_seconds = 0.0  # of the last job that succeeded
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether a job has failed and its error was not raised yet."""
        return self._error is not None

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, job: Callable[[], object]) -> None:
        """Waits for the job before, then starts `job`. Raises the error of the job before."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(job,), name="fledgling-writer", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Waits until no job is running. Raises the error of the last job, once."""
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
