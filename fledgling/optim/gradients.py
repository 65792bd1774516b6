"""From the gradients of micro-batches to the sum over all of them and all ranks, of which a rank keeps its own part.

The one idea: a gradient travels in buckets (`layout.py`), launched in one fixed order on every rank, at most AHEAD of
them in flight, and what comes back is one chunk a rank that is added to the chunks before it.

    zero 0, 1   buckets are launched after the last micro-batch
    zero 2      each bucket is launched during backward, as soon as its last gradient exists, and its gradients are
                freed: whole gradients of all parameters never coexist
    exact       buckets are launched after (zero 2: during) every micro-batch, and added in a binary tree

The tree of exact mode: micro-batch i of a step belongs to rank i mod ranks and round i // ranks. A round is summed over
ranks as a tree over neighbours, the rounds by a binary counter; with 2^k ranks both together are one tree over i, so
1, 2, 4 and 8 ranks add the same numbers in the same order. A missing micro-batch is a zero.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fledgling.optim.layout import AHEAD, Bucket, Layout
from fledgling.runtime.world import Pending, World


def carry(sums: list[Tensor], chunk: Tensor, before: int) -> None:
    """Add a chunk to the branches of a tree over `before` chunks: a binary counter, whose 1-bits are the branches.

    With `before` the number of branches, at most one, it is a plain sum.
    """
    while before & 1:
        chunk = sums.pop().add_(chunk)
        before >>= 1
    sums.append(chunk)


def total(sums: list[Tensor]) -> Tensor:
    """Add up what is left: the branches of the tree that have no neighbour. Empties the list."""
    chunk = sums.pop()
    while sums:
        chunk = sums.pop().add_(chunk)
    return chunk


class Gradients:
    """Sums the gradients of one step. `begin`, a backward and `accumulate` for each micro-batch, then `finish`."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], layout: Layout, world: World, exact: bool) -> None:
        self.parameters, self.layout, self.world, self.exact = parameters, layout, world, exact
        self.during = layout.zero == 2 and world.size > 1
        self.always = self.during or exact
        self.rounds, self.round, self.launched = 1, 0, 0
        self.ready: set[str] = set()
        self.flight: deque[tuple[int, Pending]] = deque()
        self.sums: list[list[Tensor]] = [[] for _ in layout.buckets]  # of each bucket: chunks not yet added up
        if self.during:
            for name, parameter in parameters.items():
                parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._arrived(name))

    def begin(self, rounds: int) -> None:
        """Start a step of `rounds` micro-batches on the rank that has most of them."""
        self.rounds, self.round, self.launched = rounds, 0, 0
        self.sums = [[] for _ in self.layout.buckets]

    def accumulate(self) -> None:
        """A micro-batch's backward is done: send what is due of its gradient."""
        if self.always or self.round == self.rounds - 1:
            self._launch(len(self.layout.buckets))
        self._next_round()

    def finish(self) -> dict[str, Tensor]:
        """The summed gradient of what this rank owns: by name, rows (n, ...) of the parameter, or all of it."""
        while self.round < self.rounds:  # others had a micro-batch more
            self.accumulate()
        gathered: deque[tuple[Bucket, Pending]] = deque()
        own: dict[str, Tensor] = {}
        for index, bucket in enumerate(self.layout.buckets):
            chunk = total(self.sums[index])
            if not bucket.replicated:
                own |= self._owned(bucket, chunk)
                continue
            gathered.append((bucket, self.world.all_gather(chunk)))
            if len(gathered) > AHEAD:
                own |= self._whole(*gathered.popleft())
        for bucket, pending in gathered:
            own |= self._whole(bucket, pending)
        return own

    def _arrived(self, name: str) -> None:
        self.ready.add(name)
        due = self.launched
        while due < len(self.layout.buckets) and self.ready.issuperset(self.layout.buckets[due].names):
            due += 1
        self._launch(due)

    def _launch(self, end: int) -> None:
        """Send the buckets up to `end` in their order, never more than AHEAD at once."""
        for index in range(self.launched, end):
            sent = self._packed(self.layout.buckets[index])
            self.flight.append((index, self.world.reduce_scatter(sent, self.exact)))
            if len(self.flight) == AHEAD:
                self._land()
        self.launched = end

    def _land(self) -> None:
        index, pending = self.flight.popleft()
        sums = self.sums[index]
        carry(sums, pending.wait(), self.round if self.exact else len(sums))

    def _next_round(self) -> None:
        while self.flight:
            self._land()
        self.ready.clear()
        self.round += 1
        self.launched = 0

    def _packed(self, bucket: Bucket) -> Tensor:
        """The bucket's gradients as one padded vector (ranks x chunk,); the gradients are freed."""
        grads = [self.parameters[name].grad for name in bucket.names]
        length = bucket.piece * self.layout.size
        first = self.parameters[bucket.names[0]]
        if len(grads) == 1 and grads[0] is not None and length == bucket.values:
            packed = grads[0].reshape(-1)
        else:
            packed, at = torch.zeros(length, dtype=first.dtype, device=first.device), 0
            for name, grad in zip(bucket.names, grads, strict=True):
                values = self.parameters[name].numel()
                if grad is not None:
                    packed[at : at + values] = grad.reshape(-1)
                at += values
        for name in bucket.names:
            self.parameters[name].grad = None
        return packed

    def _owned(self, bucket: Bucket, chunk: Tensor) -> dict[str, Tensor]:
        rank = self.world.rank
        if not bucket.units(rank):
            return {}
        if self.layout.roles[bucket.names[0]] == "matrix":
            name = bucket.names[bucket.units(rank)[0]]
            return {name: chunk.view(self.layout.parameters[name])}
        name = bucket.names[0]
        return {name: chunk.view(bucket.chunk, *self.layout.parameters[name][1:])[: len(bucket.units(rank))]}

    def _whole(self, bucket: Bucket, pending: Pending) -> dict[str, Tensor]:
        flat, at, own = pending.wait(), 0, {}
        for name in bucket.names:
            shape = self.layout.parameters[name]
            values = self.parameters[name].numel()
            own[name] = flat[at : at + values].view(shape)
            at += values
        return own
