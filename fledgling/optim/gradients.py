"""Reduction of gradients over micro-batches and ranks, and their norm; each rank keeps the part that it owns.

A gradient travels in buckets (`partition.py`). Every rank launches them in the same order, at most MAX_IN_FLIGHT at
once. The result of each is one chunk for each rank, which is added to the chunks of earlier micro-batches.

    zero_stage 0, 1   buckets are launched during the last backward, each as soon as its last gradient exists
    zero_stage 2      each bucket is launched during backward, as soon as its last gradient exists, and its gradients
                      are freed: the whole gradients of all parameters never coexist
    deterministic     buckets are launched after (stage 2: during) every micro-batch, and added in a binary tree

The tree of deterministic mode: micro-batch i of a step belongs to rank i mod ranks and is that rank's micro-batch i //
ranks. Micro-batches of the same number are summed over ranks as a tree over adjacent ranks, and these sums by a binary
counter. With 2^k ranks both together are one tree over i, so 1, 2, 4 and 8 ranks add the same numbers in the same
order. A missing micro-batch counts as zero.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fledgling.config import OptimizerConfig, UserError
from fledgling.optim.partition import MAX_IN_FLIGHT, Bucket, Partition
from fledgling.runtime.world import PendingCollective, World


def is_deterministic(config: OptimizerConfig, world: World) -> bool:
    """Whether 1, 2, 4 and 8 ranks must give the same bits, as [optimizer] deterministic says; auto: on a CPU.

    Raises:
        UserError: it is "on", and the number of ranks is not a power of two.
    """
    power_of_two = world.size & (world.size - 1) == 0
    if config.deterministic == "on" and not power_of_two:
        raise UserError(
            f'optimizer.deterministic is "on" with {world.size} ranks: expected 1, 2, 4, 8, ...; or use "off"'
        )
    on_cpu = world.device.type == "cpu"
    return power_of_two and (config.deterministic == "on" or (config.deterministic == "auto" and on_cpu))


def add_pairwise(sums: list[Tensor], chunk: Tensor, before: int) -> None:
    """Adds a chunk to the partial sums of a tree over `before` chunks: a binary counter, whose 1-bits are the sums.

    With `before` equal to the number of partial sums, which is then 0 or 1, this is a plain sum.

    Args:
        sums: of one shape each, the partial sums; changed.
        chunk: (n,), of a bucket; it may be overwritten.
        before: number of chunks that were added.
    """
    while before & 1:
        chunk = sums.pop().add_(chunk)
        before >>= 1
    sums.append(chunk)


def sum_branches(sums: list[Tensor]) -> Tensor:
    """Returns the sum (n,) of the partial sums (n,) that remain in the tree, and empties the list."""
    chunk = sums.pop()
    while sums:
        chunk = sums.pop().add_(chunk)
    return chunk


class GradientReducer:
    """Sums the gradients of one step.

    Call `begin_step`, then for each micro-batch a backward pass and `accumulate`, then `finish`.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], partition: Partition, world: World, deterministic: bool
    ) -> None:
        self.parameters, self.partition, self.world, self.deterministic = parameters, partition, world, deterministic
        self.reduces_in_backward = partition.zero_stage == 2 and world.size > 1
        self.reduces_every_micro_batch = self.reduces_in_backward or deterministic
        self.reduces_in_last_backward = world.size > 1 and not deterministic
        self.micro_batches, self.micro_batch, self.next_bucket = 1, 0, 0
        self.ready_names: set[str] = set()
        self.in_flight: deque[tuple[int, PendingCollective]] = deque()
        self.partial_sums: list[list[Tensor]] = [[] for _ in partition.buckets]  # by bucket
        if self.reduces_in_backward or self.reduces_in_last_backward:
            for name in (name for bucket in partition.buckets for name in bucket.names):
                parameters[name].register_post_accumulate_grad_hook(lambda _, name=name: self._on_gradient_ready(name))

    def begin_step(self, micro_batches: int) -> None:
        """Starts a step; micro_batches is the number on the rank that has the most."""
        self.micro_batches, self.micro_batch, self.next_bucket = micro_batches, 0, 0
        self.partial_sums = [[] for _ in self.partition.buckets]

    def accumulate(self) -> None:
        """Launches the buckets that are due after the backward pass of a micro-batch."""
        if self.reduces_every_micro_batch or self.micro_batch == self.micro_batches - 1:
            self._launch(len(self.partition.buckets))
        self._next_micro_batch()

    def finish(self) -> dict[str, Tensor]:
        """Returns the summed gradient of what this rank owns: by name, rows (n, ...) of the parameter, or all of it."""
        while self.micro_batch < self.micro_batches:  # other ranks had a micro-batch more
            self.accumulate()
        gathering: deque[tuple[Bucket, PendingCollective]] = deque()
        owned: dict[str, Tensor] = {}
        for index, bucket in enumerate(self.partition.buckets):
            chunk = sum_branches(self.partial_sums[index])
            if not bucket.replicated:
                owned |= self._split_owned(bucket, chunk)
                continue
            gathering.append((bucket, self.world.all_gather(chunk)))
            if len(gathering) > MAX_IN_FLIGHT:
                owned |= self._split_replicated(*gathering.popleft())
        for bucket, pending in gathering:
            owned |= self._split_replicated(bucket, pending)
        return owned

    def _on_gradient_ready(self, name: str) -> None:
        if not self.reduces_in_backward and self.micro_batch < self.micro_batches - 1:
            return
        self.ready_names.add(name)
        due = self.next_bucket
        while due < len(self.partition.buckets) and self.ready_names.issuperset(self.partition.buckets[due].names):
            due += 1
        self._launch(due)

    def _launch(self, end: int) -> None:
        """Launches the buckets before `end` in their order, at most MAX_IN_FLIGHT at once."""
        for index in range(self.next_bucket, end):
            packed = self._pack_bucket(self.partition.buckets[index])
            self.in_flight.append((index, self.world.reduce_scatter(packed, self.deterministic)))
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
        """Returns the bucket's gradients as one padded vector (ranks x chunk,), and frees them."""
        grads = [self.parameters[name].grad for name in bucket.names]
        length = bucket.chunk_values * self.partition.world_size
        first = self.parameters[bucket.names[0]]
        if len(grads) == 1 and grads[0] is not None and length == bucket.num_values:
            packed = grads[0].reshape(-1)
        else:
            packed, offset = torch.zeros(length, dtype=first.dtype, device=first.device), 0
            for name, grad in zip(bucket.names, grads, strict=True):
                values = self.parameters[name].numel()
                if grad is not None:
                    packed[offset : offset + values] = grad.reshape(-1)
                offset += values
        for name in bucket.names:
            self.parameters[name].grad = None
        return packed

    def _split_owned(self, bucket: Bucket, chunk: Tensor) -> dict[str, Tensor]:
        """Returns this rank's chunk of a bucket as the matrix, or the rows, that it owns."""
        units = bucket.rank_units(self.world.rank)
        if not units:
            return {}
        if self.partition.roles[bucket.names[0]] == "matrix":
            name = bucket.names[units[0]]
            return {name: chunk.view(self.partition.parameters[name])}
        name = bucket.names[0]
        rows = chunk.view(bucket.units_per_rank, *self.partition.parameters[name][1:])
        return {name: rows[: len(units)]}

    def _split_replicated(self, bucket: Bucket, pending: PendingCollective) -> dict[str, Tensor]:
        """Waits for a gathered bucket and returns its tensors."""
        flat, offset, gradients = pending.wait(), 0, {}
        for name in bucket.names:
            values = self.parameters[name].numel()
            gradients[name] = flat[offset : offset + values].view(self.partition.parameters[name])
            offset += values
        return gradients


def compute_gradient_norm(
    gradients: Mapping[str, Tensor], partition: Partition, world: World, deterministic: bool
) -> Tensor:
    """Returns the norm of the whole gradient (0-d), added up in the same order on any number of ranks.

    Its terms are the norms of rows (embedding, head) and of whole tensors; every rank gets all of them.

    Args:
        gradients: what this rank owns, of `GradientReducer.finish`.
    """
    if world.size == 1 and world.device.type != "cpu" and not deterministic:
        norms = torch._foreach_norm(list(gradients.values()))  # a few launches instead of several for each parameter
        return torch.stack(norms).square().sum().sqrt()
    buckets = sorted(partition.buckets, key=lambda bucket: bucket.names)
    terms = []
    for bucket in buckets:
        by_row = partition.roles[bucket.names[0]] in ("embedding", "head")
        own_norms = [_tensor_norms(gradients[name], by_row) for name in bucket.names if name in gradients]
        count = sum(map(len, own_norms))
        terms.append(torch.zeros(count if bucket.replicated else bucket.units_per_rank, device=world.device))
        if own_norms:
            terms[-1][:count] = torch.cat(own_norms)
    all_terms = world.all_gather(torch.cat(terms)).wait().view(world.size, -1)
    named: dict[str, Tensor] = {}
    for bucket, by_rank in zip(buckets, all_terms.split([len(term) for term in terms], dim=1), strict=True):
        if bucket.replicated:
            named[bucket.names[0]] = by_rank[0]
        elif len(bucket.names) < bucket.num_units:  # rows of one tensor
            named[bucket.names[0]] = by_rank.flatten()[: bucket.num_units]
        else:  # a matrix of each rank
            named |= {name: by_rank[rank] for rank, name in enumerate(bucket.names)}
    sorted_terms = torch.cat([named[name] for name in sorted(named)])
    if sorted_terms.device.type == "cpu":  # some devices have no float64, and so few terms do not need it there
        sorted_terms = sorted_terms.double()
    return sorted_terms.square().sum().sqrt()


def _tensor_norms(gradient: Tensor, by_row: bool) -> Tensor:
    """Returns the norms of the rows of a gradient (n, ...), or of all of it: (n,) or (1,), fp32."""
    if by_row:
        return torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return torch.linalg.vector_norm(gradient)[None]
