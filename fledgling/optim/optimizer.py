"""The optimizer: AdamW and Muon over the parameters of a model, on any number of ranks.

One step has these phases; `partition.py` says which rank owns what, `gradients.py` reduces the gradients to their
owners:

    reduce      gradients are summed over micro-batches and ranks; each rank receives what it owns (reduce_scatter)
    agree       all ranks compute one norm of the whole gradient; if it is not finite, no parameter is updated
    update      owners update their rows and matrices, group by group, and
    gather      send them to all ranks (all_gather) while the next group is computed

State exists only where its parameter is owned. It leaves a run whole, by parameter name, so that it can be loaded into
any other partition. On one rank every phase takes place and nothing is sent.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fledgling.config import OptimizerConfig
from fledgling.optim.gradients import GradientReducer, compute_gradient_norm, is_deterministic
from fledgling.optim.loss_scale import make_loss_scale
from fledgling.optim.owned import (
    UpdateGroup,
    is_gathered_in_half,
    pack_chunk,
    require_state,
    select_rows,
    split_bucket,
    trainable_parameters,
    write_other_rows,
)
from fledgling.optim.partition import (
    ADAMW_BLOCK_VALUES,
    MAX_IN_FLIGHT,
    Bucket,
    muon_stack_size,
    partition_parameters,
)
from fledgling.optim.roles import assign_rules
from fledgling.optim.rules import MuonSettings, adamw_, muon_, muon_direction_
from fledgling.optim.sharded import ParameterShards, ShardedGradientReducer, shard_parameters
from fledgling.optim.state import State, make_group_state
from fledgling.optim.tied import choose_lr, tie_gradients
from fledgling.runtime.compile_options import compile_options
from fledgling.runtime.world import PendingCollective, World

STATE_NAMES = {  # by rule
    "muon": ("momentum_buffer",),
    "normuon": ("momentum_buffer", "exp_avg_sq_row"),
    "adamw": ("exp_avg", "exp_avg_sq"),
}
STACKED_RULES = ("muon", "normuon")  # rules that update matrices of one shape together


class Optimizer:
    """AdamW and Muon by role; the module's docstring lists the phases of a step.

    With zero_stage 3 the constructor also shards the model's parameters (`sharded.py`), with their values at that time.

    Args:
        config: the [optimizer] table.
        lr_multiplier: of all learning rates of the table, for this stage.
        compiled: fuse AdamW with torch.compile (needs a C++ compiler on CPU); the result is the same up to rounding.
        dtype: of the products, the model's and Muon's, in which ranks also send each other updated parameters. bf16 is
            enough for the update; fp32 keeps splits of a batch equal to fp32's precision.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimizerConfig,
        world: World,
        lr_multiplier: float = 1.0,
        compiled: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.world, self.lr_multiplier, self.dtype = config, world, lr_multiplier, dtype
        self.parameters = trainable_parameters(model)
        self.rules = assign_rules(config)
        self.schedule_multiplier = 1.0
        self.updates = torch.zeros((), device=world.device)  # the number of updates, exact up to 2^24
        self.compiled, self.loss_scale = compiled, make_loss_scale(dtype)
        self.decides_on_device = world.device.type == "cuda" and not self.loss_scale.enabled
        options = compile_options(world.device)
        self._adamw: Callable = torch.compile(adamw_, dynamic=False, **options) if compiled else adamw_
        fused = compiled and world.device.type == "cuda"  # on a CPU the time is all in the products
        self._muon_direction: Callable = torch.compile(muon_direction_, dynamic=False) if fused else muon_direction_
        shapes = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        zero_stage = 1 if config.zero_stage is None else config.zero_stage
        self.partition = partition_parameters(shapes, world.size, zero_stage, matrix_optimizer=config.matrix_optimizer)
        self.deterministic = is_deterministic(config, world)
        self.shards: ParameterShards | None = None  # of parameters that are sharded
        self.gradients: GradientReducer | ShardedGradientReducer
        if self.partition.shards_parameters:
            shard_parameters(model, self.partition, world, self.deterministic, dtype)
            self.parameters = trainable_parameters(model)
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
        shards = self.shards.local if self.shards else {}
        self.owned_parameters = {
            name: shards[name] if name in shards else select_rows(self.parameters[name].detach(), rows)
            for name, rows in self.owned_rows.items()
            if not (self.shards and self.partition.roles[name] == "matrix")
        }  # as views; a sharded matrix is gathered when it is updated
        self.groups = self._make_groups()
        self.state: dict[str, State] = {}  # "<name>.<state name>", of the owned part
        self.stacks: dict[UpdateGroup, dict[str, State]] = {}  # of a group's matrices; `state` has views of them
        for group in self.groups:
            rule = self.rules[group.role].name
            settings = (STATE_NAMES[rule], rule in STACKED_RULES, self.partition, self.owned_rows, config.state)
            state, self.stacks[group] = make_group_state(group, *settings, world.device)
            self.state |= state

    @property
    def needs_equal_passes(self) -> bool:
        """Whether every rank must make the same number of forward and backward passes: with ZeRO-3 alone."""
        return self.shards is not None

    def _make_groups(self) -> list[UpdateGroup]:
        """Returns the groups in the order of their update: Muon's have one shape each, AdamW's one bucket."""
        by_shape: dict[tuple, list[Bucket]] = {}
        for index, bucket in enumerate(self.partition.buckets):
            role = self.partition.roles[bucket.names[0]]
            stacked = self.rules[role].name in STACKED_RULES
            key = (role, self.partition.parameters[bucket.names[0]] if stacked else index)
            by_shape.setdefault(key, []).append(bucket)
        return [
            UpdateGroup(role, tuple(buckets), tuple(n for b in buckets for n in b.names if n in self.owned_rows))
            for (role, _), buckets in by_shape.items()
        ]

    def persistent_bytes(self) -> int:
        """Returns the bytes of parameters and state that this rank's device holds between steps."""
        shards = self.shards.local if self.shards else {}
        parameters = sum(shards.get(name, parameter).nbytes for name, parameter in self.parameters.items())
        return parameters + sum(state.nbytes for state in self.state.values())

    def set_schedule_multiplier(self, multiplier: float) -> None:
        """Sets the multiplier of all learning rates for the next step."""
        self.schedule_multiplier = multiplier

    def begin_step(self, micro_batches: int) -> None:
        """Starts a step with at most `micro_batches` micro-batches on any rank."""
        self.gradients.begin_step(micro_batches)

    def accumulate(self) -> None:
        """Takes the gradient of the micro-batch whose backward pass has just ended."""
        self.gradients.accumulate()

    @torch.no_grad()
    def step(self, confirm_update: Callable[[], bool] = lambda: True) -> float:
        """Updates every parameter once with the sum of the gradients, and frees them.

        A gradient that is not finite, on any rank, updates no parameter on any rank.

        Args:
            confirm_update: called when the gradients have been exchanged, so that ranks with fewer micro-batches can
                communicate with the others again. It must return the same on all ranks; False updates no parameter.

        Returns:
            The norm of the whole gradient; nan or inf where it is not finite.
        """
        gradients = self.gradients.finish()
        self.loss_scale.unscale_(gradients)
        norm = float(compute_gradient_norm(gradients, self.partition, self.world, self.deterministic))
        self.loss_scale.lowered = False
        if confirm_update():
            self.loss_scale.record_step(math.isfinite(norm))
            if math.isfinite(norm):
                self.updates += 1
                self._update_parameters(gradients, self.updates)
        return norm

    @torch.no_grad()
    def queue_step(self, gather_losses: Callable[[], Tensor], has_targets: bool) -> Tensor:
        """Makes the same step without waiting for the device, which decides whether it updates a parameter.

        Args:
            gather_losses: called as `confirm_update` is; returns the losses (n,) of all ranks, the same on each. The
                step updates nothing if one of them is not finite.
            has_targets: whether the step has any target on any rank; without one it updates nothing.

        Returns:
            (1 + n,): the norm of the whole gradient, and the losses.
        """
        assert not self.loss_scale.enabled, "the next step's scale depends on this one's gradient"
        gradients = self.gradients.finish()
        norm = compute_gradient_norm(gradients, self.partition, self.world, self.deterministic)
        values = torch.cat([norm[None], gather_losses().to(norm.dtype)])
        if has_targets:
            applies = values.isfinite().all()
            self._update_parameters(gradients, self.updates + 1, applies)
            self.updates += applies
        return values

    def _update_parameters(self, gradients: dict[str, Tensor], step: Tensor, applies: Tensor | None = None) -> None:
        """Updates what is owned, group by group, while what was updated before is sent to the other ranks.

        Args:
            gradients: by name, of what this rank owns; tied ones are summed in place. It is emptied on the way.
            step: 0-d, the number of this update, from 1.
            applies: 0-d bool; where it is False nothing changes (`rules.py`).
        """
        tie_gradients(gradients, step, self.config.tied_updates)
        in_flight: deque[tuple[Bucket, PendingCollective]] = deque()
        for group in self.groups:
            if self.rules[group.role].name in STACKED_RULES:
                self._update_muon(group, gradients, applies)
            else:
                sharded_matrices = self.shards and group.role == "matrix"
                if sharded_matrices:
                    self._gather_matrices(group.buckets, list(group.owned_names))
                for name in group.owned_names:
                    self._update_adamw(name, group.role, gradients.pop(name), step, applies)
                if sharded_matrices:
                    self._scatter_matrices(group.buckets)
            for bucket in group.buckets:
                if bucket.replicated or self.shards:
                    continue
                in_flight.append((bucket, self._send_bucket(bucket)))
                if len(in_flight) == MAX_IN_FLIGHT:
                    self._receive_bucket(*in_flight.popleft())
        for bucket, pending in in_flight:
            self._receive_bucket(bucket, pending)

    def _update_adamw(self, name: str, role: str, gradient: Tensor, step: Tensor, applies: Tensor | None) -> None:
        config = self.config
        states = [self.state[f"{name}.{state_name}"] for state_name in STATE_NAMES["adamw"]]
        decay = (config.weight_decay or 0.0, config.cautious_weight_decay) if role == "matrix" else (0.0, False)
        lr = choose_lr(name, role, self._lr, step, config.tied_updates)
        for rows in states[0].pieces():
            stored = [state[rows] for state in states]
            moments = [state.read() for state in stored]
            piece = (self.owned_parameters[name][rows], gradient[rows], *moments)
            blocks = zip(*(tensor.view(-1).split(ADAMW_BLOCK_VALUES) for tensor in piece), strict=True)
            for tensors in [piece] if self.compiled else blocks:
                self._adamw(*tensors, step, lr, config.adam_betas, config.adam_eps, *decay, applies=applies)
            for state, moment in zip(stored, moments, strict=True):
                state.write(moment)

    def _update_muon(self, group: UpdateGroup, gradients: dict[str, Tensor], applies: Tensor | None) -> None:
        """Applies Muon to the group's matrices, as many at once as keep its temporaries small."""
        device = "cpu" if self.shards else self.world.device.type  # sharded matrices are gathered, few at once
        count = muon_stack_size(self.partition.parameters[group.buckets[0].names[0]], device)
        for start in range(0, len(group.buckets), count):
            buckets = group.buckets[start : start + count]  # this rank owns at most one matrix of each
            names = [name for bucket in buckets for name in bucket.names if name in self.owned_rows]
            if self.shards:
                self._gather_matrices(buckets, names)
            if names:
                stored = {name: stack[start : start + count] for name, stack in self.stacks[group].items()}
                state = {name: stack.read() for name, stack in stored.items()}
                self._apply_muon(names, gradients, state, applies)
                for name, values in state.items():
                    stored[name].write(values)
            if self.shards:
                self._scatter_matrices(buckets)

    def _apply_muon(
        self, names: list[str], gradients: dict[str, Tensor], state: dict[str, Tensor], applies: Tensor | None
    ) -> None:
        config = self.config
        settings = MuonSettings(
            momentum=config.momentum,
            weight_decay=config.weight_decay or 0.0,
            steps=config.newton_schulz_steps,
            dtype=self.dtype,
            pad_to_pair=self.deterministic and torch.get_num_threads() > 1,
            variant=config.newton_schulz,
            cautious=config.cautious_weight_decay,
            equilibrate=config.equilibrate,
            normalize=config.normalize_update,
        )
        muon_(
            [self.owned_parameters[name] for name in names],
            torch.stack([gradients.pop(name) for name in names]),
            state["momentum_buffer"],
            self._lr("matrix"),
            settings,
            exp_avg_sq_row=state.get("exp_avg_sq_row"),
            make_direction=self._muon_direction,
            applies=applies,
        )

    def _gather_matrices(self, buckets: tuple[Bucket, ...], names: list[str]) -> None:
        """Gathers sharded matrices, each on its owner, into `owned_parameters`."""
        assert self.shards is not None
        arriving = [self.shards.send_to_owner(bucket, self.shards.local) for bucket in buckets]
        matrices = [pending.wait() for pending in arriving]
        self.owned_parameters |= zip(names, matrices, strict=False)  # this rank may own none of the last bucket

    def _scatter_matrices(self, buckets: tuple[Bucket, ...]) -> None:
        """Sends updated matrices back to the ranks that hold their rows."""
        assert self.shards is not None
        in_flight = []
        for bucket in buckets:
            own = [self.owned_parameters.pop(name) for name in bucket.names if name in self.owned_rows]
            in_flight.append((bucket, self.shards.send_to_shards(bucket, own[0] if own else None)))
        for bucket, pending in in_flight:
            self.shards.write_shards(bucket, pending)

    def _lr(self, role: str) -> Tensor:
        return torch.tensor(self.rules[role].lr * self.lr_multiplier * self.schedule_multiplier)

    def _send_bucket(self, bucket: Bucket) -> PendingCollective:
        """Gathers a bucket's updated parameters: in place where its rows divide, else through a padded buffer."""
        parameter = self.parameters[bucket.names[0]].detach()
        chunk = pack_chunk(bucket, self.owned_parameters, self.world.device)
        if is_gathered_in_half(bucket, self.partition, self.dtype):
            return self.world.all_gather(chunk.to(self.dtype))
        if bucket.chunk_values * self.world.size == parameter.numel():
            return self.world.all_gather(chunk, parameter.view(-1))
        return self.world.all_gather(chunk)

    def _receive_bucket(self, bucket: Bucket, pending: PendingCollective) -> None:
        """Writes what the other ranks sent into the parameters."""
        flat = pending.wait()
        if flat.data_ptr() == self.parameters[bucket.names[0]].data_ptr():
            return
        in_half = is_gathered_in_half(bucket, self.partition, self.dtype)
        for name, value in split_bucket(bucket, self.partition, flat):
            write_other_rows(self.parameters[name], value, self.owned_rows.get(name, range(0)) if in_half else range(0))

    @torch.no_grad()
    def gather_exact_parameters(self) -> dict[str, Tensor]:
        """Returns on the main rank, in fp32, the parameters that it has only in the dtype of the products, on the CPU.

        Every rank must call it.
        """
        exact: dict[str, Tensor] = {}
        for bucket in self.partition.buckets:
            if is_gathered_in_half(bucket, self.partition, self.dtype):
                flat = self.world.gather_to_main(pack_chunk(bucket, self.owned_parameters, self.world.device))
                tensors = [] if flat is None else split_bucket(bucket, self.partition, flat.flatten())
                exact |= {name: value.to("cpu", copy=True) for name, value in tensors}
        return exact

    def full_state_dict(self, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Returns all state by parameter name, whole: `<name>.<state name>`, `count` (the updates so far), loss scale.

        Every rank must call it. The main rank gets the state on the CPU, gathered bucket by bucket; the others get an
        empty dictionary.

        Args:
            out: the result of an earlier call, to be overwritten; None makes new copies.
        """
        out = out or {}
        saved: dict[str, Tensor] = {}
        for group in self.groups:
            for bucket in group.buckets:
                for state_name in STATE_NAMES[self.rules[group.role].name]:
                    if bucket.replicated:
                        tensors = [(name, self.state[f"{name}.{state_name}"].read()) for name in bucket.names]
                    else:
                        keys = {name: f"{name}.{state_name}" for name in bucket.names}
                        own = {name: self.state[key].read() for name, key in keys.items() if key in self.state}
                        whole = self.world.gather_to_main(pack_chunk(bucket, own, self.world.device))
                        tensors = []
                        if whole is not None:
                            tensors = split_bucket(bucket, self.partition, whole.flatten(), state_name)
                    if self.world.is_main:
                        for name, value in tensors:
                            key = f"{name}.{state_name}"
                            saved[key] = out[key].copy_(value) if key in out else value.to("cpu", copy=True)
        saved |= {"count": self.updates.to("cpu", torch.int64), **self.loss_scale.state_dict()}
        return saved if self.world.is_main else {}

    @torch.no_grad()
    def load_full_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Loads the result of `full_state_dict`, given whole on every rank and saved by any number of ranks.

        Raises:
            UserError: a tensor is missing or has another shape; the first one is named.
        """
        in_order = [(name, group.role) for group in self.groups for bucket in group.buckets for name in bucket.names]
        require_state(saved, self.partition, [(name, STATE_NAMES[self.rules[role].name]) for name, role in in_order])
        for bucket in self.partition.buckets:
            for name in bucket.names:
                rows = self.partition.owned_rows(bucket, name, self.world.rank)
                for state_name in STATE_NAMES[self.rules[self.partition.roles[name]].name]:
                    key = f"{name}.{state_name}"
                    if rows:
                        self.state[key].write(select_rows(saved[key], rows))
        self.updates.copy_(saved["count"])
        self.loss_scale.load_state_dict(saved)
