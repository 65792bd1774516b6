"""Computations on the worker's thread besides answers, in pieces between two steps of the running requests.

While answers are generated, tasks take TASK_SHARE of the time of the steps, however many are queued: another user's
answer takes at most that much longer. While no answer is generated, pieces follow each other without a break.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from fledgling.infer.engine import Engine

TASK_SHARE = 1 / 6  # seconds of tasks for a second of steps

Pieces = Generator[None, None, Any]  # computes a piece for each `next`; its return value is the result


@dataclass
class TaskHandle:
    """A task. `cancel` ends it before its next piece."""

    run: Callable[[Engine], Pieces]
    emit: Callable[[Any, Exception | None], None]  # with the result, or with None and the exception
    cancelled: bool = False
    pieces: Pieces | None = field(default=None, repr=False)  # once it has begun

    def cancel(self) -> None:
        """Requests the cancellation, from any thread."""
        self.cancelled = True

    def advance(self, engine: Engine) -> tuple[bool, Exception | None]:
        """Computes a piece and emits what ends the task; returns whether it has ended, and its exception."""
        value, problem = None, None
        try:
            if self.pieces is None:
                self.pieces = self.run(engine)
            next(self.pieces)
            return False, None
        except StopIteration as end:
            value = end.value
        except Exception as error:
            problem = error
        self.emit(value, problem)
        return True, problem


class TaskQueue:
    """Tasks in the order of their arrival, and the time that they may take. The worker's lock guards `tasks`.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.tasks: deque[TaskHandle] = deque()
        self.clock = clock
        self.credit = 0.0  # seconds that the next piece may take
        self.piece_seconds = 0.0  # that the last piece took

    def add_step(self, seconds: float) -> None:
        """Adds the share of a step of the running requests to the credit, which never exceeds one piece."""
        self.credit = min(self.credit + TASK_SHARE * seconds, self.piece_seconds)

    def is_due(self, is_idle: bool) -> bool:
        """Tells whether a piece may be computed now; always where no request is running, or the task has no more."""
        return bool(self.tasks) and (is_idle or self.tasks[0].cancelled or self.credit >= self.piece_seconds)

    def compute_piece(self, engine: Engine) -> tuple[bool, Exception | None]:
        """Computes a piece of the oldest task; returns what `TaskHandle.advance` does. The caller removes the task."""
        if self.tasks[0].cancelled:
            return True, None
        start = self.clock()
        try:
            return self.tasks[0].advance(engine)
        finally:
            self.piece_seconds = self.clock() - start
            self.credit = 0.0
