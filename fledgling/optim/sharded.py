"""Sharded parameters (zero_stage 3): PyTorch's `fully_shard`, and how whole matrices reach their owners and return.

Between steps a rank holds only its rows of every large parameter, ceil(rows / ranks) of them, which is how the
partition assigns embedding and head at any stage. `fully_shard` gathers the parameters of a block for its forward and
its backward pass, frees them afterwards, and reduces their gradients into rows. Muon needs whole matrices: the gradient
and the rows of each are sent to the rank that owns its state, and the new rows are sent back. The rest is as at stage
2.

What `fully_shard` sends goes through `World` like everything else, so deterministic mode holds. `fully_shard` requires
that every rank makes the same number of forward and backward passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from fledgling.config import UserError
from fledgling.optim.gradients import GradientReducer, add_pairwise, sum_branches
from fledgling.optim.partition import Bucket, Partition, fsdp_module_of
from fledgling.runtime.world import PendingCollective, World

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def _make_buffer(size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(*size, dtype=dtype, device=device)


@dataclass(frozen=True)
class _AllGather:
    """How `fully_shard` gathers parameters: by `World.all_gather`."""

    world: World
    allocate = staticmethod(_make_buffer)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: object, async_op: bool = False) -> None:
        self.world.all_gather(input_tensor, output_tensor).wait()


@dataclass(frozen=True)
class _ReduceScatter:
    """How `fully_shard` sums gradients: by `World.reduce_scatter`."""

    world: World
    deterministic: bool
    allocate = staticmethod(_make_buffer)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: object, op: object, async_op: bool = False
    ) -> None:
        output_tensor.copy_(self.world.reduce_scatter(input_tensor, self.deterministic).wait())


def shard_parameters(
    model: nn.Module, partition: Partition, world: World, deterministic: bool, dtype: torch.dtype = torch.float32
) -> None:
    """Keeps only this rank's rows of every large parameter, on the world's device; the small ones stay whole.

    The model may be in the host's memory: it is moved block by block, so that the device never holds all of it.

    Args:
        dtype: in which the matrices of a block are gathered: that of its products, which cast them anyway, so the
            results have the same bits. Embeddings and the head, whose gradients are sums of many terms, are gathered in
            fp32, and so is a block with a value embedding. All gradients are summed over ranks in fp32.

    Raises:
        UserError: a part of the model is frozen.
    """
    if not all(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("optimizer.zero_stage is 3, which shards what is trained; frozen weights are whole: use 2")
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    parameters = dict(model.named_parameters())
    small = {parameters[name] for bucket in partition.buckets if bucket.replicated for name in bucket.names}
    for parameter in small:
        parameter.data = parameter.data.to(world.device)
    module_names = {
        fsdp_module_of(name) for bucket in partition.buckets if not bucket.replicated for name in bucket.names
    }
    mesh = world.make_device_mesh()
    roles: dict[str, set[str]] = {}  # by module
    for name in partition.roles:
        roles.setdefault(fsdp_module_of(name), set()).add(partition.roles[name])
    in_dtype = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module_name in (*sorted(module_names - {""}), ""):
        module = model.get_submodule(module_name)
        # the head, which belongs to no block, is needed from the end of forward to the beginning of backward
        policy = in_dtype if roles[module_name] <= {"matrix", "scalar"} else MixedPrecisionPolicy()
        fully_shard(module, mesh=mesh, reshard_after_forward=module_name != "", ignored_params=small, mp_policy=policy)
        assert isinstance(module, FSDPModule)
        # not subclasses of PyTorch's interfaces, whose import takes over a second
        module.set_custom_all_gather(_AllGather(world))  # type: ignore[arg-type]
        module.set_custom_reduce_scatter(_ReduceScatter(world, deterministic))  # type: ignore[arg-type]
        module.set_force_sum_reduction_for_comms(True)
        module.set_gradient_divide_factor(1.0)  # the loss is divided already
        module.set_unshard_in_backward(module_name != "embedding")  # its gradient needs the tokens, not its values


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Makes a sharded model whole on every rank within the context, for any number of forward passes.

    Every rank must enter it. It costs one gather, and 4 bytes a parameter of memory while it lasts. It does nothing to
    a model that is not sharded. Read the model's parameters within it, not `state_dict()`, for which PyTorch shards
    them again.
    """
    if not any(map(_is_sharded, model.parameters())):
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            module.set_reshard_after_forward(module is not model, recurse=False)


def gather_parameters(model: nn.Module, world: World, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Returns the model's tensors by name, whole. Every rank must call it.

    If the model is sharded, the main rank gets all tensors, on the CPU, gathered one by one; the others get those that
    are not sharded.

    Args:
        out: tensors to be overwritten with the gathered values, where it has the name; None makes new ones.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if not _is_sharded(tensor):
            tensors[name] = tensor
            continue
        own = torch.zeros(-(-tensor.shape[0] // world.size), *tensor.shape[1:], device=world.device)
        rows = _local_rows(tensor)
        own[: len(rows)] = rows
        gathered = world.gather_to_main(own)
        if gathered is not None:
            values = gathered.flatten(0, 1)[: tensor.shape[0]]
            tensors[name] = out[name].copy_(values) if out and name in out else values.to("cpu", copy=True)
    return tensors


@torch.no_grad()
def load_parameters(model: nn.Module, weights: Mapping[str, Tensor], world: World) -> None:
    """Loads whole tensors, which every rank must have, into a model that is sharded or not; others stay as they are."""
    for name, tensor in model.state_dict().items():
        if name not in weights:
            continue
        if _is_sharded(tensor):
            rows = -(-tensor.shape[0] // world.size)
            _local_rows(tensor).copy_(weights[name][world.rank * rows : (world.rank + 1) * rows])
        else:
            tensor.copy_(weights[name])


def _local_rows(tensor: Tensor | None) -> Tensor:
    """Returns the rows (n, ...) of a sharded tensor that this rank holds; n may be 0."""
    return cast("DTensor", tensor).to_local()


def _is_sharded(tensor: Tensor) -> bool:
    if type(tensor) in (Tensor, nn.Parameter):
        return False  # avoids the import, which takes over a second
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


class ParameterShards:
    """This rank's rows of the sharded parameters, and the exchange of whole matrices with their owners."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], partition: Partition, world: World) -> None:
        self.partition, self.world = partition, world
        self.names = [name for bucket in partition.buckets if not bucket.replicated for name in bucket.names]
        self.local = {name: _local_rows(parameters[name]).detach() for name in self.names}

    def send_to_owner(self, bucket: Bucket, rows: Mapping[str, Tensor]) -> PendingCollective:
        """Gathers the matrices of a bucket, each on its owner.

        Args:
            rows: this rank's rows of each matrix by name, (n, columns).

        Returns:
            The matrix (rows, columns) that this rank owns; without meaning where it owns none.
        """
        count, columns = self.partition.parameters[bucket.names[0]]
        rows_per_rank = -(-count // self.world.size)
        chunks = torch.zeros(self.world.size, rows_per_rank, columns, device=self.world.device)
        for index, name in enumerate(bucket.names):
            chunks[index, : len(rows[name])] = rows[name]
        pending = self.world.all_to_all(chunks)
        return replace(pending, result=lambda: pending.result().view(-1, columns)[:count])

    def send_to_shards(self, bucket: Bucket, matrix: Tensor | None) -> PendingCollective:
        """Sends the rows of the matrix that this rank owns to the ranks that hold them.

        Returns:
            (ranks, n, columns): this rank's rows of every matrix of the bucket.
        """
        count, columns = self.partition.parameters[bucket.names[0]]
        rows_per_rank = -(-count // self.world.size)
        chunks = torch.zeros(self.world.size * rows_per_rank, columns, device=self.world.device)
        if matrix is not None:
            chunks[:count] = matrix
        return self.world.all_to_all(chunks.view(self.world.size, rows_per_rank, columns))

    def write_shards(self, bucket: Bucket, received: PendingCollective) -> None:
        """Writes the result of `send_to_shards` into the parameters."""
        for name, rows in zip(bucket.names, received.wait(), strict=False):
            self.local[name].copy_(rows[: len(self.local[name])])


class ShardedGradientReducer:
    """`GradientReducer` for sharded parameters: `fully_shard` sums over ranks, and this class over micro-batches.

    In deterministic mode it adds in the same binary tree, so that the bits are those of the other stages.

    Args:
        parameters: by name, whole or as shards.
        partition: of the parameters over the ranks.
        world: the ranks.
        deterministic: whether sums do not depend on the number of ranks.
        shards: this rank's rows of the sharded parameters.
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
        """Starts a step of `micro_batches` micro-batches, the same number on every rank."""
        self.replicated_reducer.begin_step(micro_batches)
        self.micro_batch, self.partial_sums = 0, {name: [] for name in self.shards.names}

    def accumulate(self) -> None:
        """Adds this rank's rows of a micro-batch's gradients, after its backward pass."""
        for name in self.shards.names:
            gradient, self.parameters[name].grad = self.parameters[name].grad, None
            sums = self.partial_sums[name]
            add_pairwise(sums, _local_rows(gradient), self.micro_batch if self.deterministic else len(sums))
        self.replicated_reducer.accumulate()
        self.micro_batch += 1

    def finish(self) -> dict[str, Tensor]:
        """Returns the summed gradient of what this rank owns, by name.

        That is rows of embedding and head, whole matrices, and all small parameters.
        """
        owned = self.replicated_reducer.finish()
        for bucket in self.partition.buckets:
            if bucket.replicated:
                continue
            rows = {name: sum_branches(self.partial_sums.pop(name)) for name in bucket.names}
            units = bucket.rank_units(self.rank)
            if self.partition.roles[bucket.names[0]] == "matrix":
                matrix = self.shards.send_to_owner(bucket, rows).wait()
                owned |= {bucket.names[unit]: matrix for unit in units}
            elif units:
                owned |= rows
        return owned
