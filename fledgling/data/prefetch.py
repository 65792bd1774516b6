"""A thread that builds the batches of the next steps during the current one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from fledgling.data.batch import Batch

PREFETCH_STEPS = 2  # steps prepared during the one before


class Prefetcher:
    """Calls `produce(first)`, `produce(first + 1)`, ... up to `last` in a thread, at most `PREFETCH_STEPS` ahead.

    An exception in `produce` is raised by the `get` of its result; the thread then ends. The thread has no reference
    to its user, so that a deleted stream can be collected and closed.
    """

    def __init__(self, produce: Callable[[int], list[Batch]], first: int, last: int | None) -> None:
        self._produce = produce
        self._next, self._last = first, last
        self._ready: deque[tuple[list[Batch] | None, BaseException | None]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="fledgling-data", daemon=True)
        self._thread.start()

    def get(self) -> list[Batch]:
        """Waits for the next result and returns it. Raises what `produce` raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._closed)
            assert self._ready, "get after close"
            result, error = self._ready.popleft()
            self._changed.notify_all()
        if error is not None:
            raise error
        assert result is not None
        return result

    def close(self) -> None:
        """Stops the thread after its current step, and waits for it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not threading.current_thread():  # a finalizer may run anywhere
            self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            batches: list[Batch] | None = None
            error: BaseException | None = None
            try:
                batches = self._produce(self._next)
            except BaseException as raised:
                error = raised
            with self._changed:
                self._changed.wait_for(lambda: len(self._ready) < PREFETCH_STEPS or self._closed)
                if self._closed:
                    return
                self._ready.append((batches, error))
                self._next += 1
                self._closed = error is not None or self._next == self._last
                self._changed.notify_all()
