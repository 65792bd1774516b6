"""Parameters sharded too (`zero = 3`): PyTorch's `fully_shard`, and the way of matrices to their owners and back.

The one idea: between steps a rank holds only its rows of every large parameter, ceil(rows / ranks) of them, which is
how the layout deals embedding and head anyway. `fully_shard` gathers the parameters of a block when its forward or its
backward comes, drops them after it, and sums their gradients into rows. Muon needs whole matrices: the gradient and
the rows of each come together on the rank that owns its state, and the new rows go back. The rest is as at stage 2.

What `fully_shard` sends goes through `World` like everything else, so that exact mode stays exact. What it asks for in
return: every rank makes as many forward and backward passes as any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fledgling.optim.gradients import GradientReducer, add_pairwise, sum_branches
from fledgling.optim.partition import Bucket, Partition, fsdp_module_of
from fledgling.runtime.world import PendingCollective, World


def _buffer(size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(*size, dtype=dtype, device=device)


@dataclass(frozen=True)
class _AllGather:
    """How `fully_shard` gathers parameters: by `World.all_gather`."""

    world: World
    allocate = staticmethod(_buffer)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: object, async_op: bool = False) -> None:
        self.world.all_gather(input_tensor, output_tensor).wait()


@dataclass(frozen=True)
class _ReduceScatter:
    """How `fully_shard` sums gradients: by `World.reduce_scatter`."""

    world: World
    deterministic: bool
    allocate = staticmethod(_buffer)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: object, op: object, async_op: bool = False
    ) -> None:
        output_tensor.copy_(self.world.reduce_scatter(input_tensor, self.deterministic).wait())


def shard_parameters(model: nn.Module, partition: Partition, world: World, deterministic: bool) -> None:
    """Keep of every large parameter only this rank's rows, on the world's device; the small ones stay whole.

    The model may come from the host's memory: it is moved block by block, so that the device never holds all of it.
    """
    from torch.distributed.fsdp import fully_shard

    parameters = dict(model.named_parameters())
    small = {parameters[name] for bucket in partition.buckets if bucket.replicated for name in bucket.names}
    for parameter in small:
        parameter.data = parameter.data.to(world.device)
    homes = {fsdp_module_of(name) for bucket in partition.buckets if not bucket.replicated for name in bucket.names}
    mesh = world.make_device_mesh()
    for home in (*sorted(homes - {""}), ""):
        module = model.get_submodule(home)
        # what belongs to no block, the head, is needed from the end of forward to the beginning of backward
        fully_shard(module, mesh=mesh, reshard_after_forward=home != "", ignored_params=small)
        module.set_custom_all_gather(_AllGather(world))
        module.set_custom_reduce_scatter(_ReduceScatter(world, deterministic))
        module.set_force_sum_reduction_for_comms(True)
        module.set_gradient_divide_factor(1.0)  # the loss is divided already
        module.set_unshard_in_backward(home != "embedding")  # its gradient needs tokens, not values


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Within it a sharded model is whole on every rank and may be read any number of times; then sharded again.

    Every rank must enter it. It costs a gather, and 4 bytes a parameter of memory while it lasts. Of a model that is
    not sharded: nothing. Read the parameters there, and not `state_dict()`, for which PyTorch shards them again.
    """
    if not any(map(_is_sharded, model.parameters())):
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in parts:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in parts:
            module.reshard()
            module.set_reshard_after_forward(module is not model, recurse=False)


def gather_parameters(model: nn.Module, world: World, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The model's tensors by name, whole. Of a sharded model the main rank gets them, on the CPU, one by one and in the
    tensors of `into` where it has them; the others get those that nobody shards. Every rank must call it.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if not _is_sharded(tensor):
            found[name] = tensor
            continue
        own = torch.zeros(-(-tensor.shape[0] // world.size), *tensor.shape[1:], device=world.device)
        rows = tensor.to_local()
        own[: len(rows)] = rows
        together = world.gather_to_main(own)
        if together is not None:
            values = together.flatten(0, 1)[: tensor.shape[0]]
            found[name] = out[name].copy_(values) if out and name in out else values.to("cpu", copy=True)
    return found


@torch.no_grad()
def load_parameters(model: nn.Module, weights: Mapping[str, Tensor], world: World) -> None:
    """The inverse of `gathered`: give a model, sharded or not, the values of whole tensors that every rank has."""
    for name, tensor in model.state_dict().items():
        if _is_sharded(tensor):
            each = -(-tensor.shape[0] // world.size)
            tensor.to_local().copy_(weights[name][world.rank * each : (world.rank + 1) * each])
        else:
            tensor.copy_(weights[name])


def _is_sharded(tensor: Tensor) -> bool:
    if type(tensor) in (Tensor, nn.Parameter):
        return False  # spares the import, over a second
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


class ParameterShards:
    """This rank's rows of the parameters that are sharded, and how those of a bucket of matrices come together."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], partition: Partition, world: World) -> None:
        self.partition, self.world = partition, world
        self.names = [name for bucket in partition.buckets if not bucket.replicated for name in bucket.names]
        self.local = {name: parameters[name].to_local().detach() for name in self.names}  # (n, ...), n from 0

    def send_to_owner(self, bucket: Bucket, rows: Mapping[str, Tensor]) -> PendingCollective:
        """Bring the matrices of a bucket together, each on its owner: the one this rank owns, or of no meaning."""
        count, width = self.partition.parameters[bucket.names[0]]
        each = -(-count // self.world.size)
        sent = torch.zeros(self.world.size, each, width, device=self.world.device)
        for place, name in enumerate(bucket.names):
            sent[place, : len(rows[name])] = rows[name]
        pending = self.world.all_to_all(sent)
        return replace(pending, result=lambda: pending.result().view(-1, width)[:count])

    def send_to_shards(self, bucket: Bucket, matrix: Tensor | None) -> PendingCollective:
        """Send the rows of the matrix that this rank owns to where they are held: (ranks, n, columns), by matrix."""
        count, width = self.partition.parameters[bucket.names[0]]
        each = -(-count // self.world.size)
        sent = torch.zeros(self.world.size * each, width, device=self.world.device)
        if matrix is not None:
            sent[:count] = matrix
        return self.world.all_to_all(sent.view(self.world.size, each, width))

    def write_shards(self, bucket: Bucket, arrived: PendingCollective) -> None:
        """Write what `from_owner` brought into the parameters."""
        for name, rows in zip(bucket.names, arrived.wait(), strict=False):
            self.local[name].copy_(rows[: len(self.local[name])])


class ShardedGradientReducer:
    """`Gradients` of sharded parameters: `fully_shard` has summed over ranks what is added up here over micro-batches.

    In exact mode in the same binary tree, so that the bits are those of the other stages.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        partition: Partition,
        world: World,
        deterministic: bool,
        shards: ParameterShards,
    ) -> None:
        self.parameters, self.partition, self.deterministic, self.shards = parameters, partition, deterministic, shards
        small = tuple(bucket for bucket in partition.buckets if bucket.replicated)
        self.replicated_reducer = GradientReducer(parameters, replace(partition, buckets=small), world, deterministic)
        self.rank, self.micro_batch = world.rank, 0
        self.partial_sums: dict[str, list[Tensor]] = {}

    def begin_step(self, micro_batches: int) -> None:
        """Start a step of `rounds` micro-batches, as many on every rank."""
        self.replicated_reducer.begin_step(micro_batches)
        self.micro_batch, self.partial_sums = 0, {name: [] for name in self.shards.names}

    def accumulate(self) -> None:
        """A micro-batch's backward is done: add its rows to those before."""
        for name in self.shards.names:
            gradient, self.parameters[name].grad = self.parameters[name].grad, None
            sums = self.partial_sums[name]
            add_pairwise(sums, gradient.to_local(), self.micro_batch if self.deterministic else len(sums))
        self.replicated_reducer.accumulate()
        self.micro_batch += 1

    def finish(self) -> dict[str, Tensor]:
        """The summed gradient of what this rank owns: by name, rows of embedding and head, matrices, all small ones."""
        own = self.replicated_reducer.finish()
        for bucket in self.partition.buckets:
            if bucket.replicated:
                continue
            rows = {name: sum_branches(self.partial_sums.pop(name)) for name in bucket.names}
            mine = bucket.rank_units(self.rank)
            if self.partition.roles[bucket.names[0]] == "matrix":
                matrix = self.shards.send_to_owner(bucket, rows).wait()
                own |= {bucket.names[place]: matrix for place in mine}
            elif mine:
                own |= rows
        return own
