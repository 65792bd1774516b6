"""The optimizer: AdamW and Muon over the parameters of a model, on any number of ranks.

One step, in phases; `layout.py` says who owns what, `gradients.py` brings the gradients there:

    reduce      gradients are summed over micro-batches and ranks, each rank receiving what it owns (reduce_scatter)
    agree       one norm over all of them; if it is not finite, nobody moves
    update      owners move their rows and matrices, group by group, and
    gather      send them to everybody (all_gather) while the next group is computed

The one idea: state exists only where its parameter is owned, and leaves a run whole, by parameter name, so that it can
be loaded into any other arrangement. On one rank every phase is there and nothing travels.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from fledgling.config import OptimizerConfig, UserError
from fledgling.optim.gradients import GradientReducer
from fledgling.optim.partition import ADAMW_BLOCK_VALUES, MAX_IN_FLIGHT, Bucket, muon_stack_size, partition_parameters
from fledgling.optim.roles import assign_rules
from fledgling.optim.rules import adamw_, muon_, muon_direction_
from fledgling.optim.sharded import ParameterShards, ShardedGradientReducer, shard_parameters
from fledgling.runtime.world import PendingCollective, World

STATE_NAMES = {
    "muon": ("velocity",),
    "normuon": ("velocity", "variance"),
    "adamw": ("mean", "square"),
}  # of state, by rule
STACKED_RULES = ("muon", "normuon")  # rules that take equal-shaped matrices together


def is_deterministic(table: OptimizerConfig, world: World) -> bool:
    """Whether 1, 2, 4 and 8 ranks are to give the same bits: as [optimizer] exact says; auto: on a CPU.

    Raises UserError where it is asked for on a number of ranks that is no power of two.
    """
    paired = world.size & (world.size - 1) == 0
    if table.deterministic == "on" and not paired:
        raise UserError(
            f'optimizer.deterministic is "on" with {world.size} ranks: expected 1, 2, 4, 8, ...; or use "off"'
        )
    return paired and (table.deterministic == "on" or (table.deterministic == "auto" and world.device.type == "cpu"))


@dataclass(frozen=True)
class UpdateGroup:
    """What is updated together: equal-shaped matrices as one stack, or the tensors of one bucket one by one."""

    role: str
    buckets: tuple[Bucket, ...]
    owned_names: tuple[str, ...]  # the parameters of which this rank owns a part


class Optimizer:
    """AdamW and Muon by role; the module tells the phases of a step.

    With `zero = 3` it shards the model's parameters too (`sharded.py`), as they are when it is made.

    compiled: fuse AdamW with torch.compile (needs a C++ compiler on CPU); the result is the same up to rounding.
    dtype: of Muon's products; bf16 is enough for the update, fp32 keeps splits of a batch equal to fp32's precision.
    """

    def __init__(
        self,
        model: nn.Module,
        table: OptimizerConfig,
        world: World,
        lr_multiplier: float = 1.0,
        compiled: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.table, self.world, self.lr_multiplier, self.dtype = table, world, lr_multiplier, dtype
        self.parameters = dict(model.named_parameters())
        self.rules = assign_rules(table)
        self.schedule_multiplier, self.update_count = 1.0, 0
        self.compiled = compiled
        self._adamw: Callable = torch.compile(adamw_, dynamic=False) if compiled else adamw_
        fused = compiled and world.device.type == "cuda"  # on a CPU the products are all of it
        self._muon_direction: Callable = torch.compile(muon_direction_, dynamic=False) if fused else muon_direction_
        shapes = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        self.partition = partition_parameters(
            shapes,
            world.size,
            1 if table.zero_stage is None else table.zero_stage,
            matrix_optimizer=table.matrix_optimizer,
        )
        self.deterministic = is_deterministic(table, world)
        self.shards: ParameterShards | None = None  # of parameters that are sharded
        if self.partition.shards_parameters:
            shard_parameters(model, self.partition, world, self.deterministic)
            self.parameters = dict(model.named_parameters())
            self.shards = ParameterShards(self.parameters, self.partition, world)
            self.gradients = ShardedGradientReducer(
                self.parameters, self.partition, world, self.deterministic, self.shards
            )
        else:
            self.gradients = GradientReducer(self.parameters, self.partition, world, self.deterministic)
        self.owned_rows = {
            name: rows
            for bucket in self.partition.buckets
            for name in bucket.names
            if (rows := self.partition.owned_rows(bucket, name, world.rank))
        }  # the rows of each parameter that this rank updates
        self.owned_parameters = {
            name: self.shards.local[name]
            if self.shards and name in self.shards.local
            else _select_rows(self.parameters[name].detach(), rows)
            for name, rows in self.owned_rows.items()
            if not (self.shards and self.partition.roles[name] == "matrix")
        }  # as views; a sharded matrix comes together when it is updated
        self.groups = self._make_groups()
        self.state: dict[str, Tensor] = {}  # "<name>.mean", "<name>.square", "<name>.velocity" of the parts
        self.stacks: dict[
            UpdateGroup, dict[str, Tensor]
        ] = {}  # by kind, of a group together; `state` has views of them
        for group in self.groups:
            rule = self.rules[group.role].name
            kinds = STATE_NAMES[rule]
            if rule in STACKED_RULES and group.owned_names:
                shape = self.partition.parameters[group.owned_names[0]]
                for kind in kinds:
                    stack = torch.zeros(len(group.owned_names), *_state_shape(kind, shape), device=world.device)
                    self.stacks.setdefault(group, {})[kind] = stack
                    self.state |= {f"{name}.{kind}": stack[i] for i, name in enumerate(group.owned_names)}
            else:
                self.state |= {f"{n}.{kind}": self._zero_state(n) for n in group.owned_names for kind in kinds}

    def _zero_state(self, name: str) -> Tensor:
        """Zeros, as many as this rank owns of a parameter."""
        shape = self.partition.parameters[name]
        rows = (len(self.owned_rows[name]),) if shape else ()
        return torch.zeros((*rows, *shape[1:]), device=self.world.device)

    @property
    def needs_equal_passes(self) -> bool:
        """Whether every rank must make as many forward and backward passes as any other."""
        return self.shards is not None

    def _make_groups(self) -> list[UpdateGroup]:
        """The groups in the order of their update: the same on every rank."""
        by_shape: dict[tuple, list[Bucket]] = {}
        for index, bucket in enumerate(self.partition.buckets):
            role = self.partition.roles[bucket.names[0]]
            key = (
                role,
                self.partition.parameters[bucket.names[0]] if self.rules[role].name in STACKED_RULES else index,
            )
            by_shape.setdefault(key, []).append(bucket)
        return [
            UpdateGroup(role, tuple(buckets), tuple(n for b in buckets for n in b.names if n in self.owned_rows))
            for (role, _), buckets in by_shape.items()
        ]

    def persistent_bytes(self) -> int:
        """Bytes of the parameters and state that this rank holds between steps."""
        held = self.shards.local if self.shards else {}
        parameters = (held.get(name, parameter) for name, parameter in self.parameters.items())
        return sum(tensor.nbytes for tensor in (*parameters, *self.state.values()))

    def set_schedule_multiplier(self, multiplier: float) -> None:
        """Set the multiplier of every rate for the next step."""
        self.schedule_multiplier = multiplier

    def begin_step(self, micro_batches: int) -> None:
        """Expect the gradients of at most `rounds` micro-batches on every rank."""
        self.gradients.begin_step(micro_batches)

    def accumulate(self) -> None:
        """Take the gradient of the micro-batch whose backward has just ended."""
        self.gradients.accumulate()

    @torch.no_grad()
    def step(self, confirm_update: Callable[[], bool] = lambda: True) -> float:
        """Move every parameter once with the sum of the gradients, and drop them; return their norm.

        A gradient that is not finite, on any rank, moves nothing on any: the norm returned is then nan or inf, and
        the caller decides. agreed: asked when the gradients have been exchanged, so that ranks with fewer micro-batches
        may speak to the others again; False, which all ranks must say alike, moves nothing.
        """
        gradients = self.gradients.finish()
        norm = self._gradient_norm(gradients)
        if confirm_update() and math.isfinite(norm):
            self.update_count += 1
            self._update_parameters(gradients)
        return norm

    def _gradient_norm(self, gradients: dict[str, Tensor]) -> float:
        """The norm of the whole gradient, added up in the same order on any number of ranks.

        Its terms are the norms of rows (embedding, head) and of whole tensors; every rank gets all of them.
        """
        if self.world.size == 1 and self.world.device.type != "cpu" and not self.deterministic:
            norms = torch._foreach_norm(list(gradients.values()))  # a few launches instead of several a parameter
            return float(torch.stack(norms).square().sum().sqrt())
        buckets = sorted(self.partition.buckets, key=lambda bucket: bucket.names)
        terms = []
        for bucket in buckets:
            rows = self.partition.roles[bucket.names[0]] in ("embedding", "head")
            found = [_gradient_norms(gradients[name], rows) for name in bucket.names if name in gradients]
            length = sum(map(len, found)) if bucket.replicated else bucket.units_per_rank
            terms.append(torch.zeros(length, device=self.world.device))
            if found:
                terms[-1][: sum(map(len, found))] = torch.cat(found)
        everywhere = self.world.all_gather(torch.cat(terms)).wait().view(self.world.size, -1)
        named: dict[str, Tensor] = {}
        for bucket, found in zip(buckets, everywhere.split([len(term) for term in terms], dim=1), strict=True):
            if bucket.replicated:
                named[bucket.names[0]] = found[0]
            elif len(bucket.names) < bucket.num_units:
                named[bucket.names[0]] = found.flatten()[: bucket.num_units]
            else:
                named |= {name: found[rank] for rank, name in enumerate(bucket.names)}
        terms_in_order = torch.cat([named[name] for name in sorted(named)])
        if terms_in_order.device.type == "cpu":  # some devices have no float64, none needs it for so few terms
            terms_in_order = terms_in_order.double()
        return float(terms_in_order.square().sum().sqrt())

    def _update_parameters(self, gradients: dict[str, Tensor]) -> None:
        """Update what is owned, group by group, while what was updated before is on its way to the others."""
        step = torch.tensor(float(self.update_count))
        flight: deque[tuple[Bucket, PendingCollective]] = deque()
        for group in self.groups:
            if self.rules[group.role].name in STACKED_RULES:
                self._update_muon(group, gradients)
            else:
                apart = self.shards and group.role == "matrix"
                if apart:
                    self._gather_matrices(group.buckets, list(group.owned_names))
                for name in group.owned_names:
                    self._update_adamw(name, group.role, gradients.pop(name), step)
                if apart:
                    self._scatter_matrices(group.buckets)
            for bucket in group.buckets:
                if bucket.replicated or self.shards:
                    continue
                flight.append((bucket, self._send_bucket(bucket)))
                if len(flight) == MAX_IN_FLIGHT:
                    self._receive_bucket(*flight.popleft())
        for bucket, pending in flight:
            self._receive_bucket(bucket, pending)

    def _update_adamw(self, name: str, role: str, gradient: Tensor, step: Tensor) -> None:
        table, (mean, square) = self.table, (self.state[f"{name}.{kind}"] for kind in STATE_NAMES["adamw"])
        decay = (table.weight_decay, table.cautious_weight_decay) if role == "matrix" else (0.0, False)
        whole = (self.owned_parameters[name], gradient, mean, square)
        blocks = zip(*(tensor.view(-1).split(ADAMW_BLOCK_VALUES) for tensor in whole), strict=True)
        for tensors in [whole] if self.compiled else blocks:
            self._adamw(*tensors, step, self._lr(role), table.adam_betas, table.adam_eps, *decay)

    def _update_muon(self, group: UpdateGroup, gradients: dict[str, Tensor]) -> None:
        """Muon on the group's matrices, so many at once as keep its temporaries small."""
        kind = "cpu" if self.shards else self.world.device.type  # sharded matrices are gathered: few at once
        together = muon_stack_size(self.partition.parameters[group.buckets[0].names[0]], kind)
        for start in range(0, len(group.buckets), together):
            buckets = group.buckets[start : start + together]  # of each at most one matrix is this rank's
            names = [name for bucket in buckets for name in bucket.names if name in self.owned_rows]
            if self.shards:
                self._gather_matrices(buckets, names)
            if names:
                here = {kind: stack[start : start + together] for kind, stack in self.stacks[group].items()}
                self._apply_muon(names, gradients, here)
            if self.shards:
                self._scatter_matrices(buckets)

    def _apply_muon(self, names: list[str], gradients: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        table = self.table
        muon_(
            [self.owned_parameters[name] for name in names],
            torch.stack([gradients.pop(name) for name in names]),
            state["velocity"],
            self._lr("matrix"),
            table.momentum,
            table.weight_decay,
            table.newton_schulz_steps,
            self.dtype,
            pad_to_pair=self.deterministic and torch.get_num_threads() > 1,
            variant=table.newton_schulz,
            exp_avg_sq_row=state.get("variance"),
            cautious=table.cautious_weight_decay,
            make_direction=self._muon_direction,
        )

    def _gather_matrices(self, buckets: tuple[Bucket, ...], names: list[str]) -> None:
        """Bring sharded matrices together, each on its owner, as its `parts`."""
        arriving = [self.shards.send_to_owner(bucket, self.shards.local) for bucket in buckets]
        matrices = [pending.wait() for pending in arriving]
        self.owned_parameters |= zip(names, matrices, strict=False)  # of the last bucket this rank may own none

    def _scatter_matrices(self, buckets: tuple[Bucket, ...]) -> None:
        """Send updated matrices back to where their rows are held."""
        sent = []
        for bucket in buckets:
            own = [self.owned_parameters.pop(name) for name in bucket.names if name in self.owned_rows]
            sent.append((bucket, self.shards.send_to_shards(bucket, own[0] if own else None)))
        for bucket, pending in sent:
            self.shards.write_shards(bucket, pending)

    def _lr(self, role: str) -> Tensor:
        return torch.tensor(self.rules[role].lr * self.lr_multiplier * self.schedule_multiplier)

    def _send_bucket(self, bucket: Bucket) -> PendingCollective:
        """Gather a bucket's updated parameters: in place where its rows divide, else by way of a padded buffer."""
        whole = self.parameters[bucket.names[0]].detach()
        if bucket.chunk_values * self.world.size == whole.numel():
            return self.world.all_gather(self._pack_chunk(bucket, self.owned_parameters), whole.view(-1))
        return self.world.all_gather(self._pack_chunk(bucket, self.owned_parameters))

    def _pack_chunk(self, bucket: Bucket, parts: dict[str, Tensor], suffix: str = "") -> Tensor:
        """This rank's chunk of a bucket (unit x chunk,), from tensors by parameter name and suffix; zero-padded."""
        own = [parts[f"{name}{suffix}"].reshape(-1) for name in bucket.names if f"{name}{suffix}" in parts]
        if len(own) == 1 and len(own[0]) == bucket.chunk_values:
            return own[0]
        piece = torch.zeros(bucket.chunk_values, device=self.world.device)
        if own:
            piece[: len(own[0])] = own[0]
        return piece

    def _receive_bucket(self, bucket: Bucket, pending: PendingCollective) -> None:
        """Write what came from the other ranks into the parameters."""
        flat = pending.wait()
        if flat.data_ptr() == self.parameters[bucket.names[0]].data_ptr():
            return
        for name, value in self._split_bucket(bucket, flat):
            self.parameters[name].copy_(value)

    def _split_bucket(self, bucket: Bucket, flat: Tensor, kind: str = "") -> list[tuple[str, Tensor]]:
        """Cut a bucket's values, padding at the end, into its parameters, or into their state of one kind."""
        shapes = [self.partition.parameters[name] for name in bucket.names]
        values = flat[: bucket.num_values].split([prod(shape) for shape in shapes])
        kept = [_state_shape(kind, shape) for shape in shapes]
        return [(name, v[: prod(s)].view(s)) for name, v, s in zip(bucket.names, values, kept, strict=True)]

    def full_state_dict(self, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """All state by parameter name, whole: `<name>.mean`, `.square`, `.velocity`, and `count` (updates so far).

        Every rank must call it; the main rank gets the state, on the CPU and bucket by bucket, the others get nothing.
        into: what an earlier call returned, to be written over; else the copies are new.
        """
        out = out or {}
        saved: dict[str, Tensor] = {}
        for group in self.groups:
            for bucket in group.buckets:
                for kind in STATE_NAMES[self.rules[group.role].name]:
                    if bucket.replicated:
                        found = [(name, self.state[f"{name}.{kind}"]) for name in bucket.names]
                    else:
                        flat = self.world.gather_to_main(self._pack_chunk(bucket, self.state, f".{kind}"))
                        found = [] if flat is None else self._split_bucket(bucket, flat.flatten(), kind)
                    if self.world.is_main:
                        for name, value in found:
                            key = f"{name}.{kind}"
                            saved[key] = out[key].copy_(value) if key in out else value.to("cpu", copy=True)
        return saved | {"count": torch.tensor(self.update_count)} if self.world.is_main else {}

    @torch.no_grad()
    def load_full_state_dict(self, saved: dict[str, Tensor]) -> None:
        """The inverse of `tensors`, from the whole state on every rank, saved by any number of ranks.

        Raises UserError naming the first tensor that is missing or misshapen.
        """
        for group in self.groups:
            for name in (name for bucket in group.buckets for name in bucket.names):
                for kind in STATE_NAMES[self.rules[group.role].name]:
                    _require_shape(saved, f"{name}.{kind}", _state_shape(kind, self.partition.parameters[name]))
        _require_shape(saved, "count", ())
        for bucket in self.partition.buckets:
            for name in bucket.names:
                rows = self.partition.owned_rows(bucket, name, self.world.rank)
                for kind in STATE_NAMES[self.rules[self.partition.roles[name]].name]:
                    if rows:
                        self.state[f"{name}.{kind}"].copy_(_select_rows(saved[f"{name}.{kind}"], rows))
        self.update_count = int(saved["count"])


def _state_shape(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a parameter's state: its own, or a value a row."""
    return shape[:1] if kind == "variance" else shape


def _select_rows(tensor: Tensor, rows: range) -> Tensor:
    """Some rows of a tensor, as a view; a number has one."""
    return tensor[rows.start : rows.stop] if tensor.ndim else tensor


def _require_shape(saved: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> None:
    found = tuple(saved[name].shape) if name in saved else "nothing"
    if found != shape:
        raise UserError(f"optimizer state {name}: expected shape {shape}, found {found}")


def _gradient_norms(gradient: Tensor, rows: bool) -> Tensor:
    """Norms of the rows of a gradient (n, ...), or of all of it: (n,) or (1,), fp32."""
    if rows:
        return torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return torch.linalg.vector_norm(gradient)[None]
