"""How many bytes of gradients and buffers a rank holds while gradients appear and are on their way to other ranks.

The one idea: `fledgling/optim/gradients.py` is a fixed order of packing, sending and landing buckets, so its memory is
found by going through that order with sizes instead of tensors.

    packed    beside the gradients, unless one tensor is the bucket        + ranks x piece
    received  what the others send                                         + ranks x piece
    landed    the sum, of which a rank keeps its piece; both are freed     + piece, - 2 x ranks x piece

What it is not: bytes over a wire (`comm.py`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import prod

from fledgling.optim.layout import AHEAD, Bucket, Layout

FP32 = 4  # bytes of a gradient


@dataclass(frozen=True)
class Arrival:
    """The gradient of `name` has appeared: most bytes held meanwhile, and bytes held afterwards."""

    name: str
    peak: int
    held: int


@dataclass
class _Rank:
    """What a rank holds, and the most it held since that was last asked."""

    dealt: Layout
    held: int = 0
    peak: int = 0
    flight: deque[Bucket] = field(default_factory=deque)

    def add(self, size: int) -> None:
        self.held += size
        self.peak = max(self.peak, self.held)

    def launch(self, bucket: Bucket) -> None:
        """Pack and send a bucket; land the one before it."""
        whole = FP32 * bucket.piece * self.dealt.size
        if len(bucket.names) > 1 or whole != FP32 * bucket.values:
            self.add(whole)
            self.held -= FP32 * bucket.values
        self.add(whole)
        self.flight.append(bucket)
        if len(self.flight) == AHEAD:
            self.land()

    def land(self) -> None:
        piece = FP32 * self.flight.popleft().piece
        self.add(piece)
        self.held -= 2 * piece * self.dealt.size

    def take(self) -> tuple[int, int]:
        """(the most since the last time, what is held now)."""
        found, self.peak = (self.peak, self.held), self.held
        return found


def travel(dealt: Layout, during: bool) -> tuple[list[Arrival], Arrival]:
    """Return the gradients of one micro-batch in the order of backward, and the exchange after it.

    during: buckets go as soon as they are full (ZeRO-2), else after backward. On one rank nothing travels.
    """
    rank, ready, sent = _Rank(dealt), set[str](), 0
    arrivals = []
    for name in reversed(dealt.parameters):
        rank.add(FP32 * prod(dealt.parameters[name]))
        ready.add(name)
        while during and sent < len(dealt.buckets) and ready.issuperset(dealt.buckets[sent].names):
            rank.launch(dealt.buckets[sent])
            sent += 1
        arrivals.append(Arrival(name, *rank.take()))
    if dealt.size > 1:
        for bucket in dealt.buckets[sent:]:
            rank.launch(bucket)
        while rank.flight:
            rank.land()
    return arrivals, Arrival("", *rank.take())
