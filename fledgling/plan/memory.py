"""How many bytes of tensors one rank holds at its peak, moment by moment; the largest moment is the answer.

The one idea: memory is not a sum but a maximum. A step has a few moments that can be its peak, and each holds other
things at once:

    gather       zero = 3: the parameters that come together first
    head         all activations, and a chunk of logits with its gradients          (end of forward)
    backward     of some block: the activations before it, the gradients behind it, its own temporaries
    embedding    all gradients
    exchange     all gradients, and the buckets on their way to other ranks
    optimizer    the gradients that are not spent yet, and the rules' temporaries

Without a compiler the count is exact up to small tensors; compiled, and on a GPU, it is an estimate:
docs/math/memory.md says how far off. Not in it: libraries' workspaces, the allocator's `slack`, evaluation, and beside
a GPU the host's memory, where the copy lies that a checkpoint is written from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from fledgling.config import UserError
from fledgling.model.config import ModelConfig
from fledgling.model.logit_chunks import tokens_per_chunk
from fledgling.optim.partition import (
    ADAMW_BLOCK_VALUES,
    GradientArrival,
    Partition,
    muon_stack_size,
    partition_parameters,
)
from fledgling.plan import activations, zero3
from fledgling.plan.parameters import count_matrix_parameters, count_parameters, parameter_shapes

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
# "fledgling" is what this package does; "whole-logits" another system's: the logits of all rows in one compiled graph.
LAYOUTS = ("fledgling", "whole-logits")
WHOLE_GRAPH_ACTIVATIONS = 22  # widths a token and layer; fitted to three published peaks (docs/math/memory.md)
# Of a GPU's memory: what caching loses (a share of what is held, an estimate) and what CUDA takes before any tensor.
SLACK_SHARE, CUDA_CONTEXT = 0.05, 1 << 30
ADAMW_TEMPORARIES = 7  # moments, denominator, update and its parts, where nothing fuses the rule
MAX_MICRO_BATCH_ROWS = 64  # of one automatic forward/backward
MAX_MICRO_BATCH_TOKENS = {"cpu": 8192}  # beyond it a larger micro-batch is not faster there


@dataclass(frozen=True)
class TrainingStep:
    """How one step is laid out on one rank.

    rows: rows of `context` tokens in one forward/backward; micro_batches: of them in a step on this rank; dtype: of the
    products (weights and states are fp32); ranks, zero: who owns what; device: "cpu" or "cuda"; compiled: blocks and
    rules by torch.compile; exact: gradients added in a binary tree (None: on a CPU, and a power of two of ranks);
    documents: rows hold several; answering: evaluations keep a copy of the weights in dtype; saving: checkpoints are
    written while it trains on, from a copy that lies in host memory; reference: rl holds the weights that it began with
    beside those that it trains; layout: of LAYOUTS; rule: what moves the matrices.
    """

    rows: int
    context: int
    dtype: str = "bfloat16"
    micro_batches: int = 1
    ranks: int = 1
    zero_stage: int = 1
    device: str = "cuda"
    compiled: bool = True
    deterministic: bool | None = None
    packed_documents: bool = True
    copies_weights_for_eval: bool = False
    saves_checkpoints: bool = False
    has_reference_model: bool = False
    layout: str = "fledgling"
    matrix_optimizer: str = "muon"

    @property
    def tokens(self) -> int:
        """Tokens of one forward/backward."""
        return self.rows * self.context

    @property
    def value_bytes(self) -> int:
        """Bytes of a value in the compute dtype."""
        return DTYPE_BYTES[self.dtype]

    @property
    def reduces_in_tree(self) -> bool:
        """Whether gradients are added in a binary tree."""
        paired = self.ranks & (self.ranks - 1) == 0
        return paired and (self.device == "cpu" if self.deterministic is None else self.deterministic)

    @property
    def shards_gradients(self) -> bool:
        """Whether a rank keeps only its own part of the gradients (ZeRO-2 and 3)."""
        return self.zero_stage >= 2 and self.ranks > 1

    @property
    def shards_parameters(self) -> bool:
        """Whether a rank keeps only its rows of the parameters, and gathers them when they are needed (ZeRO-3)."""
        return self.zero_stage == 3 and self.ranks > 1


def memory_by_phase(config: ModelConfig, step: TrainingStep) -> dict[str, dict[str, int]]:
    """Return what is held at each moment of a step, by component, with its `total`, in bytes."""
    if step.layout == "whole-logits":
        return {"head": _summed(_whole_logits(config, step))}
    dealt = partition_parameters(
        parameter_shapes(config), step.ranks, step.zero_stage, matrix_optimizer=step.matrix_optimizer
    )
    whole = 4 * count_parameters(config)["total"]
    head = 4 * config.vocab_size * config.width
    before = _gradients_before(dealt, step, whole)
    received, apart = step.reduces_in_tree or step.device == "cpu", step.shards_parameters
    *arrivals, exchange = zero3.backward_arrivals(dealt, received) if apart else dealt.simulate_reduction(received)
    base = {
        "parameters": 4 * zero3.resident_values(dealt) if apart else whole,
        "optimizer": 4 * dealt.estimate_memory(0).optimizer_state,
        "buffers": _buffers(config, step),
        "snapshot": _snapshot(config, step),
        **({"reference": whole} if step.has_reference_model else {}),
    }
    two_grads = _accumulates(step) or config.tie_embeddings  # the second use's gradient beside the first's
    last = max((one.peak for one in arrivals if "blocks" not in one.name), key=sum)
    found = {
        "head": {
            "gradients": before + head,
            "cast_weights": _cast_weights(config, step),
            "activations": sum(sum(layer_activation_bytes(config, step, n).values()) for n in range(config.depth))
            + outer_activation_bytes(config, step)
            + _last_norm(config, step),
            "logits": _logits(config, step),
        },
        "backward": _backward(config, step, arrivals),
        "embedding": {
            **_travelling(last),
            "temporaries": step.tokens * 4 * config.width + (head if two_grads else 0),
        },
        "exchange": _travelling(exchange.peak),
        "optimizer": _update(dealt, step),
    }
    for name in ("backward", "embedding", "exchange"):
        found[name]["gradients"] += before
    if apart:
        found["head"]["communication"] = 4 * zero3.gather_groups(dealt)[""].padded_values
        found["gather"] = {"gradients": before, "communication": 4 * zero3.gather_peak(dealt)}
    return {name: _summed(base | held) for name, held in found.items()}


def _travelling(values: tuple[int, int]) -> dict[str, int]:
    return {"gradients": 4 * values[0], "communication": 4 * values[1]}


def _backward(config: ModelConfig, step: TrainingStep, arrivals: list[GradientArrival]) -> dict[str, int]:
    """What backward holds at its worst, block by block from the last: gradients that have appeared, activations left.

    In a block the feed-forward comes first, while all of the block is still kept; its temporaries are the largest.
    """
    kept, ends = (
        [layer_activation_bytes(config, step, n) for n in range(config.depth)],
        outer_activation_bytes(config, step),
    )
    layers, casts = [sum(one.values()) for one in kept], _cast_weights(config, step)
    temporaries = activations.backward_peak_bytes(config, step.tokens, step.value_bytes, step.compiled)
    stream = step.tokens * step.value_bytes * config.width
    found = []
    for one in arrivals:
        if not one.name.startswith("blocks."):
            continue
        number = int(one.name.split(".")[1])
        opening = one.name.endswith(("mlp.fc2.weight", "mlp.down_proj.weight"))
        left = layers[number] - (0 if opening else kept[number]["feed_forward"])
        moment = {
            "cast_weights": casts * (number + 1) // config.depth,
            "activations": sum(layers[:number]) + left + ends,
        }
        found.append(moment | _travelling(one.peak) | {"temporaries": stream})
        if opening:
            found.append(moment | _travelling(one.after) | {"temporaries": temporaries})
    return max(found, key=lambda held: sum(held.values()))


def estimate_peak_memory(config: ModelConfig, step: TrainingStep) -> dict[str, int]:
    """Return the peak in bytes by component, and their `total`: the largest of the `moments`."""
    return max(memory_by_phase(config, step).values(), key=lambda held: held["total"])


def layer_activation_bytes(config: ModelConfig, step: TrainingStep, layer: int | None = None) -> dict[str, int]:
    """Return the bytes that a block keeps for backward, by kind: one of those that see all, or the given one."""
    kept = activations.compiled_activation_bytes if step.compiled else activations.eager_activation_bytes
    window = None if layer is None else config.layer_window_size(layer)
    return kept(config, step.rows, step.context, step.value_bytes, step.device, step.packed_documents, window)


def outer_activation_bytes(config: ModelConfig, step: TrainingStep) -> int:
    """Return the bytes kept outside the blocks: the embedding before its norm, and one mask for all layers."""
    masked = step.packed_documents and not activations.uses_blockwise_attention(step.context, step.device)
    embedding = step.tokens * (4 * config.width + 4) if config.embedding_norm else 0
    return embedding + (step.value_bytes * step.tokens * step.context if masked else 0)


def memory_slack(total: int, device: str) -> int:
    """Return the bytes to leave free beside `total` bytes of tensors: an estimate; none on a CPU."""
    return 0 if device == "cpu" else round(SLACK_SHARE * total) + CUDA_CONTEXT


def choose_micro_batch_size(config: ModelConfig, rows: int, memory: int, step: TrainingStep) -> int:
    """Return the most rows of one forward/backward that divide a rank's `rows` and fit into `memory` bytes.

    `plan` proposes it and `train` uses it. At most MOST_ROWS, and no more tokens than make a device faster. Raises
    UserError where not even one row fits.
    """
    most = min(rows, MAX_MICRO_BATCH_ROWS, max(1, MAX_MICRO_BATCH_TOKENS.get(step.device, 1 << 62) // step.context))
    for size in range(most, 0, -1):
        if rows % size == 0 and fits_memory(config, replace(step, rows=size, micro_batches=rows // size), memory):
            return size
    raise UserError(explain_memory_shortage(config, replace(step, rows=1, micro_batches=rows), memory))


def fits_memory(config: ModelConfig, step: TrainingStep, memory: int) -> bool:
    """Whether the peak, and the slack beside it, are at most `memory` bytes."""
    total = estimate_peak_memory(config, step)["total"]
    return total + memory_slack(total, step.device) <= memory


def explain_memory_shortage(config: ModelConfig, step: TrainingStep, memory: int) -> str:
    """Return one line: what is needed, what there is, and what would work."""
    total = estimate_peak_memory(config, step)["total"]
    needed = total + memory_slack(total, step.device)
    rows = step.rows * step.micro_batches
    smaller = (n for n in range(step.rows - 1, 0, -1) if rows % n == 0)
    best = next((n for n in smaller if fits_memory(config, replace(step, rows=n, micro_batches=rows // n), memory)), 0)
    single = replace(step, rows=1, micro_batches=rows)
    contexts = (step.context >> k for k in range(1, step.context.bit_length()))
    context = next((T for T in contexts if fits_memory(config, replace(single, context=T), memory)), 0)
    depths = range(config.depth - 1, 0, -1)
    depth = next((L for L in depths if fits_memory(replace(config, depth=L), single, memory)), 0)
    advice = [f"a micro-batch of {best}"] if best else [f"model.context={context}"] if context else []
    advice += [f"model.depth={depth} at this width"] if depth and not best else []
    advice = advice or ["a smaller model.depth and width"]
    shards = "" if step.shards_parameters else ", more ranks with optimizer.zero_stage=3"
    return (
        f"{step.rows} rows of {step.context} tokens need {needed / 2**30:,.1f} GiB and there are "
        f"{memory / 2**30:,.1f} GiB: use {', or '.join(advice)}{shards}, or a larger device"
    )


def rule_of_thumb_bytes(count: int) -> dict[str, int]:
    """Return what is usually said for `count` parameters, in bytes: 2 + 2 + 8 a parameter, and 16 to 20 with the rest.

    It leaves out activations and logits, which depend on tokens and not on parameters, and takes AdamW for all.
    """
    return {"states": 12 * count, "low": 16 * count, "high": 20 * count}


def _summed(held: dict[str, int]) -> dict[str, int]:
    return {"total": sum(held.values()), **held}


def _buffers(config: ModelConfig, step: TrainingStep) -> int:
    """Bytes of rotary tables, of a step's tokens, targets and document numbers, and of a copy for evaluations."""
    rotary = 4 * config.context * config.head_width if config.positions == "rope" else 0
    batch = step.tokens * step.micro_batches * (20 if step.packed_documents else 16)
    copied = step.copies_weights_for_eval and step.dtype != "float32"
    return rotary + batch + (step.value_bytes * count_parameters(config)["total"] if copied else 0)


def _snapshot(config: ModelConfig, step: TrainingStep) -> int:
    """Bytes of the copy that a checkpoint is written from: weights and whole state, on the rank that writes."""
    if not step.saves_checkpoints or step.device != "cpu":
        return 0
    return 4 * (
        count_parameters(config)["total"]
        + partition_parameters(parameter_shapes(config), 1, 0, matrix_optimizer=step.matrix_optimizer)
        .estimate_memory(0)
        .optimizer_state
    )


def _cast_weights(config: ModelConfig, step: TrainingStep) -> int:
    """Bytes of the blocks' weights in the compute dtype, kept from forward to backward; the head's are in `_logits`."""
    counts = count_parameters(config)
    outside = (1 if config.tie_embeddings else 2) * config.vocab_size * config.width + counts.get("value_embeddings", 0)
    return 0 if step.dtype == "float32" else step.value_bytes * (counts["total"] - outside)


def _last_norm(config: ModelConfig, step: TrainingStep) -> int:
    """Bytes kept by the norm before the head: what it read, in fp32, and what it gave."""
    gave = step.value_bytes * config.width * (2 if config.norm == "rms_weighted" else 1)
    return step.tokens * (4 * config.width + 8 + gave)


def _accumulates(step: TrainingStep) -> bool:
    """Whether autograd adds a micro-batch's gradient to the one before it."""
    return step.micro_batches > 1 and not step.reduces_in_tree and not step.shards_gradients


def _gradients_before(dealt: Partition, step: TrainingStep, whole: int) -> int:
    """Bytes of gradients that the micro-batches before the last left: the tree's branches, or the sum so far."""
    shards = sum(4 * bucket.chunk_values for bucket in dealt.buckets) if step.ranks > 1 else whole
    if step.shards_parameters:
        shards = 4 * zero3.resident_values(dealt)
    if step.reduces_in_tree:
        return shards * max(bin(done).count("1") for done in range(step.micro_batches))
    if step.micro_batches == 1:
        return 0
    return shards if step.shards_gradients else whole


def _logits(config: ModelConfig, step: TrainingStep) -> int:
    """Bytes of the head's pass over a chunk: logits, their exponentials, gradients of the hidden states."""
    A, E, V, w = step.tokens, config.width, config.vocab_size, step.value_bytes
    n = min(A, tokens_per_chunk(V))
    # compiled: logits in, gradients out; else in fp32 z, t, e (without a cap z, e), in bf16 as many bytes
    passing = n * V * (2 * w if step.compiled else 12 if config.logit_softcap else 8)
    adding = n * V * w + n * E * 8 + (0 if w == 4 else V * E * (w + 4))  # the product, and its sum's promotion
    return A * 4 * E + (0 if w == 4 else w * V * E) + max(passing, adding)


def _update(dealt: Partition, step: TrainingStep) -> dict[str, int]:
    """Gradients and temporaries at the optimizer's peak: group by group, in the optimizer's own order."""
    if step.shards_parameters:
        held = zero3.update_peak(dealt, step.value_bytes / 4, step.compiled)
        return dict(zip(("gradients", "temporaries", "communication"), (4 * values for values in held), strict=True))
    groups: dict[tuple, list] = {}
    for index, bucket in enumerate(dealt.buckets):
        together = dealt.is_stacked(bucket)
        groups.setdefault((together, dealt.parameters[bucket.names[0]] if together else index), []).append(bucket)
    left = 4 * sum(
        bucket.count_owned_values(0) if bucket.replicated else bucket.chunk_values for bucket in dealt.buckets
    )
    flying, w = 0, step.value_bytes / 4
    found = [(left, 0, 0)]
    for (together, shape), buckets in groups.items():
        own = 4 * sum(bucket.count_owned_values(0) for bucket in buckets)
        if together:  # beside the stack: x and the next x, or in bf16 x, in fp32 again, squared; Gram matrices
            stack = min(own, 4 * prod(shape) * muon_stack_size(shape))
            gram = 2 * w * min(shape) / max(shape)
            temporaries = round(stack * (2 + gram if w == 1 else 2.5))
        else:  # AdamW: temporaries of a block; one pass when compiled
            temporaries = 0 if step.compiled else 4 * ADAMW_TEMPORARIES * min(own // 4, ADAMW_BLOCK_VALUES)
        found.append((left, temporaries, flying))
        left -= own
        for bucket in buckets:
            in_place = bucket.replicated or (
                len(bucket.names) == 1 and bucket.chunk_values * step.ranks == bucket.num_values
            )
            arriving = 0 if in_place else 4 * bucket.chunk_values * step.ranks
            found.append((left, 0, flying + arriving))
            flying = arriving
    worst = max(found, key=sum)
    return {"gradients": worst[0], "temporaries": worst[1], "communication": worst[2]}


def _whole_logits(config: ModelConfig, step: TrainingStep) -> dict[str, int]:
    """The peak of the "whole-logits" layout: one compiled graph, its embedding and that one's moments in bf16.

    In one graph the compiler makes fp32 logits again and writes their gradient over the bf16 ones: w bytes a logit.
    """
    A, E, V, w = step.tokens, config.width, config.vocab_size, step.value_bytes
    M, table = count_matrix_parameters(config), config.vocab_size * config.width
    states = 4 * M + 4 * table + w * table
    return {
        "parameters": states,
        "gradients": states if step.micro_batches > 1 else 0,
        "optimizer": (4 * M + 8 * table + 2 * w * table) // (step.ranks if step.zero_stage else 1),
        "cast_weights": w * (M + table),
        "activations": A * w * E * config.depth * WHOLE_GRAPH_ACTIVATIONS,
        "logits": A * V * w,
    }
