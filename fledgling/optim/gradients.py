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

from fledgling.optim.partition import MAX_IN_FLIGHT, Bucket, Partition
from fledgling.runtime.world import PendingCollective, World


def add_pairwise(sums: list[Tensor], chunk: Tensor, before: int) -> None:
    """Add a chunk to the branches of a tree over `before` chunks: a binary counter, whose 1-bits are the branches.

    With `before` the number of branches, at most one, it is a plain sum.
    """
    while before & 1:
        chunk = sums.pop().add_(chunk)
        before >>= 1
    sums.append(chunk)


def sum_branches(sums: list[Tensor]) -> Tensor:
    """Add up what is left: the branches of the tree that have no neighbour. Empties the list."""
    chunk = sums.pop()
    while sums:
        chunk = sums.pop().add_(chunk)
    return chunk


class GradientReducer:
    """Sums the gradients of one step. `begin`, a backward and `accumulate` for each micro-batch, then `finish`."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], partition: Partition, world: World, deterministic: bool
    ) -> None:
        self.parameters, self.partition, self.world, self.deterministic = parameters, partition, world, deterministic
        self.reduces_in_backward = partition.zero_stage == 2 and world.size > 1
        self.reduces_every_micro_batch = self.reduces_in_backward or deterministic
        self.micro_batches, self.micro_batch, self.next_bucket = 1, 0, 0
        self.ready_names: set[str] = set()
        self.in_flight: deque[tuple[int, PendingCollective]] = deque()
        self.partial_sums: list[list[Tensor]] = [
            [] for _ in partition.buckets
        ]  # of each bucket: chunks not yet added up
        if self.reduces_in_backward:
            for name, parameter in parameters.items():
                parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._on_gradient_ready(name))

    def begin_step(self, micro_batches: int) -> None:
        """Start a step of `rounds` micro-batches on the rank that has most of them."""
        self.micro_batches, self.micro_batch, self.next_bucket = micro_batches, 0, 0
        self.partial_sums = [[] for _ in self.partition.buckets]

    def accumulate(self) -> None:
        """A micro-batch's backward is done: send what is due of its gradient."""
        if self.reduces_every_micro_batch or self.micro_batch == self.micro_batches - 1:
            self._launch(len(self.partition.buckets))
        self._next_micro_batch()

    def finish(self) -> dict[str, Tensor]:
        """The summed gradient of what this rank owns: by name, rows (n, ...) of the parameter, or all of it."""
        while self.micro_batch < self.micro_batches:  # others had a micro-batch more
            self.accumulate()
        gathered: deque[tuple[Bucket, PendingCollective]] = deque()
        own: dict[str, Tensor] = {}
        for index, bucket in enumerate(self.partition.buckets):
            chunk = sum_branches(self.partial_sums[index])
            if not bucket.replicated:
                own |= self._split_owned(bucket, chunk)
                continue
            gathered.append((bucket, self.world.all_gather(chunk)))
            if len(gathered) > MAX_IN_FLIGHT:
                own |= self._split_replicated(*gathered.popleft())
        for bucket, pending in gathered:
            own |= self._split_replicated(bucket, pending)
        return own

    def _on_gradient_ready(self, name: str) -> None:
        self.ready_names.add(name)
        due = self.next_bucket
        while due < len(self.partition.buckets) and self.ready_names.issuperset(self.partition.buckets[due].names):
            due += 1
        self._launch(due)

    def _launch(self, end: int) -> None:
        """Send the buckets up to `end` in their order, never more than AHEAD at once."""
        for index in range(self.next_bucket, end):
            sent = self._pack_bucket(self.partition.buckets[index])
            self.in_flight.append((index, self.world.reduce_scatter(sent, self.deterministic)))
            if len(self.in_flight) == MAX_IN_FLIGHT:
                self._finish_oldest()
        self.next_bucket = end

    def _finish_oldest(self) -> None:
        index, pending = self.in_flight.popleft()
        sums = self.partial_sums[index]
        add_pairwise(sums, pending.wait(), self.micro_batch if self.deterministic else len(sums))

    def _next_micro_batch(self) -> None:
        while self.in_flight:
            self._finish_oldest()
        self.ready_names.clear()
        self.micro_batch += 1
        self.next_bucket = 0

    def _pack_bucket(self, bucket: Bucket) -> Tensor:
        """The bucket's gradients as one padded vector (ranks x chunk,); the gradients are freed."""
        grads = [self.parameters[name].grad for name in bucket.names]
        length = bucket.chunk_values * self.partition.world_size
        first = self.parameters[bucket.names[0]]
        if len(grads) == 1 and grads[0] is not None and length == bucket.num_values:
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

    def _split_owned(self, bucket: Bucket, chunk: Tensor) -> dict[str, Tensor]:
        rank = self.world.rank
        if not bucket.rank_units(rank):
            return {}
        if self.partition.roles[bucket.names[0]] == "matrix":
            name = bucket.names[bucket.rank_units(rank)[0]]
            return {name: chunk.view(self.partition.parameters[name])}
        name = bucket.names[0]
        return {
            name: chunk.view(bucket.units_per_rank, *self.partition.parameters[name][1:])[
                : len(bucket.rank_units(rank))
            ]
        }

    def _split_replicated(self, bucket: Bucket, pending: PendingCollective) -> dict[str, Tensor]:
        flat, at, own = pending.wait(), 0, {}
        for name in bucket.names:
            shape = self.partition.parameters[name]
            values = self.parameters[name].numel()
            own[name] = flat[at : at + values].view(shape)
            at += values
        return own
