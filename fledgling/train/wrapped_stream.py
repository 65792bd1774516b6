"""A stage's stream with something done at each step; its state, and all else, is the stream's own."""

from __future__ import annotations

from collections.abc import Callable

from fledgling.data.batch import Batch
from fledgling.train.stage import Stream


class WrappedStream:
    """A stream that changes its batches, or notes its steps.

    Args:
        stream: of a stage.
        change: batch -> the batch that the loss gets.
        on_step: is called before each step's batches are made.
    """

    def __init__(
        self,
        stream: Stream,
        change: Callable[[Batch], Batch] = lambda batch: batch,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.stream, self.change, self.on_step = stream, change, on_step

    def next(self) -> list[Batch]:
        """Returns this rank's micro-batches of the next step."""
        self.on_step()
        return [self.change(batch) for batch in self.stream.next()]

    def state_dict(self) -> dict:
        """Returns the stream's state."""
        return self.stream.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Continues where `state_dict` was taken."""
        self.stream.load_state_dict(state)

    def skip(self, steps: int) -> None:
        """Skips the stream's next steps."""
        self.stream.skip(steps)

    def close(self) -> None:
        """Closes the stream."""
        self.stream.close()
