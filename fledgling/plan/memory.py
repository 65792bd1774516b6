"""Counts the bytes of tensors that one rank holds at its peak, phase by phase; the largest phase is the answer.

Peak memory is a maximum, not a sum: a step has a few phases that can be its peak, and each holds other tensors.

    gather       ZeRO-3: the parameters that are gathered first
    head         all activations, and a chunk of logits with its gradients          (end of forward)
    backward     of one block: the activations before it, the gradients after it, its own temporaries
    embedding    all gradients
    exchange     all gradients, and the buckets in transit to other ranks
    optimizer    the gradients not yet consumed, and the temporaries of the update rules

Without a compiler the count is exact up to small tensors; compiled, and on a GPU, it is an estimate:
docs/math/memory.md gives the errors. Not included: library workspaces, the allocator's slack, evaluation, and next to a
GPU the host memory, which holds the copy that a checkpoint is written from.
"""

from __future__ import annotations

from math import prod

from fledgling.config import ModelConfig
from fledgling.model.head_chunk import head_chunk_tokens
from fledgling.optim.partition import (
    ADAMW_BLOCK_VALUES,
    GradientArrival,
    Partition,
    muon_stack_size,
    partition_parameters,
    state_piece_values,
    update_temporaries,
)
from fledgling.plan import activations, adapter, zero3
from fledgling.plan.parameters import count_matrix_parameters, count_parameters
from fledgling.plan.teacher import SCORER, STORED
from fledgling.plan.training_step import TrainingStep

# "fledgling" is this package; "whole-logits" another system: the logits of all rows in one compiled graph.
LAYOUTS = ("fledgling", "whole-logits")
WHOLE_GRAPH_ACTIVATIONS = 22  # widths per token and layer; fitted to three published peaks (docs/math/memory.md)
# Of a GPU's memory: fragmentation of the caching allocator (a share, estimated) and CUDA's own context.
SLACK_SHARE, CUDA_CONTEXT = 0.05, 1 << 30
ADAMW_TEMPORARIES = 7  # moments, denominator, update and its parts, where the rule is not fused


def memory_by_phase(config: ModelConfig, step: TrainingStep) -> dict[str, dict[str, int]]:
    """Returns the bytes held in each phase of a step, by component, with their `total`."""
    if step.layout == "whole-logits":
        return {"head": _add_total(_whole_logits(config, step))}
    trained = adapter.trained_shapes(config, step.adapter)
    partition = partition_parameters(trained, step.ranks, step.zero_stage, matrix_optimizer=step.matrix_optimizer)
    all_parameters, full_gradients = (
        adapter.parameter_bytes(config, step.adapter),
        4 * sum(map(prod, trained.values())),
    )
    head = 0 if step.adapter else 4 * config.vocab_size * config.width
    earlier_gradients = _count_earlier_gradient_bytes(partition, step, full_gradients)
    receives_copies, sharded_parameters = step.reduces_in_tree or step.device == "cpu", step.shards_parameters
    *arrivals, exchange = (
        zero3.backward_arrivals(partition, receives_copies)
        if sharded_parameters
        else partition.simulate_reduction(receives_copies, in_backward=not step.reduces_in_tree)
    )
    base = {
        "parameters": 4 * zero3.resident_values(partition) if sharded_parameters else all_parameters,
        "optimizer": partition.count_state_bytes(step.optimizer_state),
        "buffers": _count_buffer_bytes(config, step),
        "snapshot": _count_snapshot_bytes(config, step),
        **adapter.dequantized_bytes(config, step.adapter, step.value_bytes),
        **({"reference": full_gradients} if step.has_reference_model else {}),  # of an adapter: another adapter
        **_count_teacher_bytes(config, step),
    }
    two_gradients = _adds_in_autograd(step) or config.tie_embeddings  # the gradients of both uses at once
    last = max((arrival.peak for arrival in arrivals if step.adapter or "blocks" not in arrival.name), key=sum)
    phases = {
        "head": {
            "gradients": earlier_gradients + head,
            "cast_weights": _count_cast_weight_bytes(config, step),
            "activations": sum(sum(layer_activation_bytes(config, step, n).values()) for n in range(config.depth))
            + outer_activation_bytes(config, step)
            + adapter.activation_bytes(config, step.adapter, step.tokens, step.value_bytes)
            + _count_last_norm_bytes(config, step),
            "logits": _count_logit_bytes(config, step),
        },
        "backward": _find_backward_peak(config, step, arrivals),
        "embedding": {
            **_name_arrival_bytes(last),
            "temporaries": step.tokens * 4 * config.width + (head if two_gradients else 0),
        },
        "exchange": _name_arrival_bytes(exchange.peak),
        "optimizer": _update(partition, step),
    }
    for name in ("backward", "embedding", "exchange"):
        phases[name]["gradients"] += earlier_gradients
    if sharded_parameters:
        phases["head"]["communication"] = 4 * zero3.gather_groups(partition)[""].padded_values
        phases["gather"] = {"gradients": earlier_gradients, "communication": 4 * zero3.gather_peak(partition)}
    summed = {name: _add_total(base | components) for name, components in phases.items()}
    if step.teacher is not None and step.teacher.role == STORED:  # before there is a gradient or a moment
        reading = {"teacher": step.teacher.weight_bytes(step.value_bytes), "logits": _count_logit_bytes(config, step)}
        summed["teacher"] = _add_total({"parameters": base["parameters"], **reading})
    return summed


def _count_teacher_bytes(config: ModelConfig, step: TrainingStep) -> dict[str, int]:
    """Returns the bytes of a teacher that the step holds, and of the rounded copy of the weights, if there are any."""
    held = {}
    if step.teacher is not None and step.teacher.role == STORED:
        held["predictions"] = step.teacher.predictions_bytes(step.tokens * step.micro_batches)
    elif step.teacher is not None:
        held["teacher"] = step.teacher.weight_bytes(step.value_bytes)
    if step.is_quantization_aware:
        held["rounded"] = 4 * (sum(map(prod, config.block_matrices().values())) + config.vocab_size * config.width)
    return held


def _name_arrival_bytes(values: tuple[int, int]) -> dict[str, int]:
    """Returns (gradients, buffers) in values as bytes by component."""
    return {"gradients": 4 * values[0], "communication": 4 * values[1]}


def _find_backward_peak(config: ModelConfig, step: TrainingStep, arrivals: list[GradientArrival]) -> dict[str, int]:
    """Returns the bytes of the backward pass at its peak, block by block from the last.

    In a block the feed-forward comes first, while all of the block is still kept; its temporaries are the largest.
    """
    kept = [layer_activation_bytes(config, step, n) for n in range(config.depth)]
    outer = outer_activation_bytes(config, step)
    layers, cast_weights = [sum(arrival.values()) for arrival in kept], _count_cast_weight_bytes(config, step)
    temporaries = activations.backward_peak_bytes(config, step.tokens, step.value_bytes, step.compiled)
    stream = step.tokens * step.value_bytes * config.width
    thin = adapter.activation_bytes(config, step.adapter, step.tokens, step.value_bytes)
    candidates = []
    for arrival in arrivals:
        if not arrival.name.startswith("blocks."):
            continue
        layer = int(arrival.name.split(".")[1])
        starts_block = ".mlp.fc2." in arrival.name or ".mlp.down_proj." in arrival.name
        remaining = layers[layer] - (0 if starts_block else kept[layer]["feed_forward"])
        if step.recompute:
            again = block_activation_bytes(config, step, layer)
            remaining += sum(again.values()) - (0 if starts_block else again["feed_forward"])
        components = {
            "cast_weights": cast_weights * (layer + 1) // config.depth,
            "activations": sum(layers[:layer]) + remaining + outer + thin * (layer + 1) // config.depth,
        }
        candidates.append(components | _name_arrival_bytes(arrival.peak) | {"temporaries": stream})
        if starts_block:
            candidates.append(components | _name_arrival_bytes(arrival.after) | {"temporaries": temporaries})
    return max(candidates, key=lambda components: sum(components.values()))


def estimate_peak_memory(config: ModelConfig, step: TrainingStep) -> dict[str, int]:
    """Returns the peak in bytes by component, and their `total`: the largest of `memory_by_phase`."""
    return max(memory_by_phase(config, step).values(), key=lambda components: components["total"])


def layer_activation_bytes(config: ModelConfig, step: TrainingStep, layer: int | None = None) -> dict[str, int]:
    """Returns the bytes that a block keeps for backward, by kind: layer `layer`, or (None) one without a window."""
    if step.recompute:
        return {"input": step.tokens * step.value_bytes * config.width, "feed_forward": 0}
    return block_activation_bytes(config, step, layer)


def block_activation_bytes(config: ModelConfig, step: TrainingStep, layer: int | None = None) -> dict[str, int]:
    """Returns the bytes that a block holds while its gradients are computed, by kind; `layer` as above."""
    kept = activations.compiled_activation_bytes if step.compiled else activations.eager_activation_bytes
    window = None if layer is None else config.layer_window_size(layer)
    counted = kept(config, step, window)
    if step.adapter and config.norm == "rms_weighted":  # what a frozen weight multiplies is not kept
        counted["norms"] //= 2
    return counted


def outer_activation_bytes(config: ModelConfig, step: TrainingStep) -> int:
    """Returns the bytes kept outside the blocks: the embedding before its norm, and one mask for all layers."""
    uses_block_mask = step.device == "cuda" and step.compiled  # a few bytes for each row
    blockwise = activations.uses_blockwise_attention(step.context, step.device)
    masked = step.packed_documents and not blockwise and not uses_block_mask
    norm_width = step.value_bytes if uses_block_mask else 4  # what a compiled norm keeps; an eager one keeps fp32
    embedding = step.tokens * (norm_width * config.width + 4) if config.embedding_norm else 0
    embedding += activations.stream_bytes(config, step.tokens, step.value_bytes)
    return embedding + (step.value_bytes * step.tokens * step.context if masked else 0)


def memory_slack(total: int, device: str) -> int:
    """Returns the bytes to leave free in addition to `total` bytes of tensors: an estimate; none on a CPU."""
    return 0 if device == "cpu" else round(SLACK_SHARE * total) + CUDA_CONTEXT


def fits_memory(config: ModelConfig, step: TrainingStep, memory: int) -> bool:
    """Returns whether the peak and its slack are at most `memory` bytes."""
    total = estimate_peak_memory(config, step)["total"]
    return total + memory_slack(total, step.device) <= memory


def _add_total(components: dict[str, int]) -> dict[str, int]:
    return {"total": sum(components.values()), **components}


def _count_buffer_bytes(config: ModelConfig, step: TrainingStep) -> int:
    """Returns the bytes of rotary tables, of a step's tokens, targets and document numbers, and the evaluation copy."""
    rotary = 4 * config.context * config.head_width if config.positions == "rope" else 0
    batch = step.tokens * step.micro_batches * (20 if step.packed_documents else 16)
    copies_weights = step.copies_weights_for_eval and (step.answer_dtype or step.dtype) != "float32"
    return rotary + batch + (step.answer_value_bytes * count_parameters(config)["total"] if copies_weights else 0)


def _count_snapshot_bytes(config: ModelConfig, step: TrainingStep) -> int:
    """Returns the bytes of the copy in the device's memory that a checkpoint is written from; a GPU's is the host's."""
    return checkpoint_bytes(config, step) if step.saves_checkpoints and step.device == "cpu" else 0


def checkpoint_bytes(config: ModelConfig, step: TrainingStep) -> int:
    """Returns the bytes of a checkpoint's tensors: trained weights and full optimizer state."""
    trained = adapter.trained_shapes(config, step.adapter)
    partition = partition_parameters(trained, 1, 0, matrix_optimizer=step.matrix_optimizer)
    return 4 * (sum(map(prod, trained.values())) + partition.estimate_memory(0).optimizer_state)


def _count_cast_weight_bytes(config: ModelConfig, step: TrainingStep) -> int:
    """Returns the bytes of the blocks' weights in the compute dtype; `_count_logit_bytes` counts those of the head."""
    counts = count_parameters(config)
    outside = (1 if config.tie_embeddings else 2) * config.vocab_size * config.width + counts.get("value_embeddings", 0)
    if step.dtype == "float32" or (step.adapter and step.adapter.quantization != "none"):
        return 0
    return step.value_bytes * (counts["total"] - outside)


def _count_last_norm_bytes(config: ModelConfig, step: TrainingStep) -> int:
    """Returns the bytes kept by the norm before the head: its input and its output."""
    output = step.value_bytes * config.width * (2 if config.norm == "rms_weighted" and not step.adapter else 1)
    input_bytes = step.value_bytes if step.device == "cuda" and step.compiled else 4  # compiled norms keep no fp32
    return step.tokens * (input_bytes * config.width + 8 + output)


def _adds_in_autograd(step: TrainingStep) -> bool:
    """Returns whether autograd adds a micro-batch's gradient to the previous one."""
    return step.micro_batches > 1 and not step.reduces_in_tree and not step.shards_gradients


def _count_earlier_gradient_bytes(partition: Partition, step: TrainingStep, full_gradients: int) -> int:
    """Returns the gradient bytes left by the earlier micro-batches: branches of the tree, or the sum so far."""
    own_gradients = sum(4 * bucket.chunk_values for bucket in partition.buckets) if step.ranks > 1 else full_gradients
    if step.shards_parameters:
        own_gradients = 4 * zero3.resident_values(partition)
    if step.reduces_in_tree:
        return own_gradients * max(bin(finished).count("1") for finished in range(step.micro_batches))
    if step.micro_batches == 1:
        return 0
    return own_gradients if step.shards_gradients else full_gradients


def _count_logit_bytes(config: ModelConfig, step: TrainingStep) -> int:
    """Returns the bytes of the head's pass over a chunk: logits, exp of them, gradients of the hidden states."""
    A, E, V, w = step.tokens, config.width, config.vocab_size, step.value_bytes
    if step.teacher is not None and step.teacher.role != SCORER:
        return step.teacher.divergence_bytes(config, A, w, step.device, step.compiled)
    n = min(A, head_chunk_tokens(V, step.device))  # tokens per chunk
    # compiled: logits in, gradients out, on a CPU with a cap e in fp32; else in fp32 z, t, e (without a cap z, e), in
    # bf16 as many bytes
    kept = 4 if config.logit_softcap and step.device == "cpu" else 0
    loss_bytes = n * V * (2 * w + kept if step.compiled else 12 if config.logit_softcap else 8)
    gradient_bytes = (
        n * V * w + n * E * 8 + (0 if w == 4 or step.adapter else V * E * (w + 4))
    )  # the product, and the promotion of its sum
    return A * 4 * E + (0 if w == 4 else w * V * E) + max(loss_bytes, gradient_bytes)


def _update(partition: Partition, step: TrainingStep) -> dict[str, int]:
    """Returns gradients and temporaries at the optimizer's peak: group by group, in the optimizer's own order."""
    if step.shards_parameters:
        gradients, temporaries, in_transit = zero3.update_peak(partition, step.value_bytes / 4, step.compiled)
        piece = state_piece_values(step.device)
        temporaries = update_temporaries(step.optimizer_state, 4 * temporaries, piece, step.device, moments=2)
        return {"gradients": 4 * gradients, "temporaries": temporaries, "communication": 4 * in_transit}
    groups: dict[tuple, list] = {}
    for index, bucket in enumerate(partition.buckets):
        stacked = partition.is_stacked(bucket)
        groups.setdefault((stacked, partition.parameters[bucket.names[0]] if stacked else index), []).append(bucket)
    gradients = 4 * sum(
        bucket.count_owned_values(0) if bucket.replicated else bucket.chunk_values for bucket in partition.buckets
    )
    in_transit, w = 0, step.value_bytes / 4
    candidates = [(gradients, 0, 0)]
    for (stacked, shape), buckets in groups.items():
        own = 4 * sum(bucket.count_owned_values(0) for bucket in buckets)
        if stacked:  # besides the stack: x and the next x, or in bf16 x, its fp32 form, its square; Gram matrices
            stack = min(own, 4 * prod(shape) * muon_stack_size(shape, step.device))
            gram = 2 * w * min(shape) / max(shape)
            temporaries = round(stack * (2 + gram if w == 1 else 2.5))
            temporaries = update_temporaries(step.optimizer_state, temporaries, stack // 4, step.device)
        else:  # AdamW: temporaries of one block of values of one parameter; none when compiled
            largest = max(prod(partition.parameters[name]) for bucket in buckets for name in bucket.names)
            temporaries = 0 if step.compiled else 4 * ADAMW_TEMPORARIES * min(own // 4, largest, ADAMW_BLOCK_VALUES)
            piece = min(own // 4, largest, state_piece_values(step.device))
            temporaries = update_temporaries(step.optimizer_state, temporaries, piece, step.device, moments=2)
        candidates.append((gradients, temporaries, in_transit))
        gradients -= own
        for bucket in buckets:
            in_place = bucket.replicated or (
                len(bucket.names) == 1 and bucket.chunk_values * step.ranks == bucket.num_values
            )
            in_half = step.dtype != "float32" and not bucket.replicated  # what is sent and what is received
            incoming = 2 * (step.ranks + 1) if in_half else 0 if in_place else 4 * step.ranks
            incoming *= bucket.chunk_values
            candidates.append((gradients, 0, in_transit + incoming))
            in_transit = incoming
    peak = max(candidates, key=sum)
    return {"gradients": peak[0], "temporaries": peak[1], "communication": peak[2]}


def _whole_logits(config: ModelConfig, step: TrainingStep) -> dict[str, int]:
    """Returns the peak of the "whole-logits" layout: one compiled graph, the embedding and its moments in bf16.

    In one graph the compiler recomputes fp32 logits and writes their gradient over the bf16 ones: w bytes per logit.
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
