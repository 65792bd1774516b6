"""How many bytes of tensors one rank holds at its peak, moment by moment; the largest moment is the answer.

The one idea: memory is not a sum but a maximum. A step has a few moments that can be its peak, and each holds other
things at once:

    head        all activations, and a chunk of logits with its gradients          (end of forward)
    last_block  all activations, the head's gradient, the last block's temporaries (start of backward)
    first_block one block's activations, nearly all gradients
    embedding   all gradients
    exchange    all gradients, and the buckets on their way to other ranks
    optimizer   all gradients that are not spent yet, and the rules' temporaries

Without a compiler the count is exact up to small tensors (docs/math/memory.md says how it was checked); compiled and on
a GPU it is an estimate. Not in it: libraries' workspaces, fragmentation (`slack`), evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from fledgling.model.config import ModelConfig
from fledgling.optim.layout import AHEAD, Layout, lay_out
from fledgling.plan import activations
from fledgling.plan.size import matrices, parameters, tensors

BYTES = {"float32": 4, "bfloat16": 2}
CHUNK_VALUES = 1 << 22  # logits of one chunk, as in fledgling.model.logprob
HEADROOM = 0.9  # share of a device's memory that an automatic micro-batch may fill


@dataclass(frozen=True)
class Step:
    """How one step is laid out on one rank.

    rows: rows of `context` tokens in one forward/backward; micro_batches: of them in a step on this rank; dtype: of the
    products (weights and states are fp32); ranks, zero: who owns what; device: "cpu" or "cuda"; compiled: blocks and
    rules by torch.compile; exact: gradients added in a binary tree (None: on a CPU, and a power of two of ranks);
    documents: rows hold several; whole_logits: another system's layout, fp32 logits of all rows at once.
    """

    rows: int
    context: int
    dtype: str = "bfloat16"
    micro_batches: int = 1
    ranks: int = 1
    zero: int = 1
    device: str = "cuda"
    compiled: bool = True
    exact: bool | None = None
    documents: bool = True
    whole_logits: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of one forward/backward."""
        return self.rows * self.context

    @property
    def width(self) -> int:
        """Bytes of a value in the compute dtype."""
        return BYTES[self.dtype]

    @property
    def in_tree(self) -> bool:
        """Whether gradients are added in a binary tree."""
        paired = self.ranks & (self.ranks - 1) == 0
        return paired and (self.device == "cpu" if self.exact is None else self.exact)


def moments(config: ModelConfig, step: Step) -> dict[str, dict[str, int]]:
    """Return what is held at each moment of a step, by component."""
    layout = lay_out(tensors(config), step.ranks, step.zero)
    A, E, V, F, w = step.tokens, config.width, config.vocab_size, config.hidden, step.width
    N, M, head = 4 * parameters(config)["total"], 4 * matrices(config), 4 * V * E
    casts = 0 if w == 4 else w * (parameters(config)["total"] - (0 if config.tied else V * E) - V * E)
    kept = activations.compiled if step.compiled else activations.eager
    layer = sum(kept(config, step.rows, step.context, w, step.device, step.documents).values())
    ends = A * (4 * E + 4) * (1 if config.embedding_norm else 0)
    mask = 0 if not step.documents or activations.blockwise(step.context, step.device) else w * A * step.context
    before = _gradients_before(layout, step, N)
    base = {
        "parameters": N,
        "optimizer": 4 * layout.held(0).state,
        "buffers": (4 * config.context * config.head_width if config.positions == "rope" else 0) + _batch(step),
    }
    shared = {**base, "cast_weights": casts}
    backward = activations.backward_peak(config, A, w)
    flying = 8 * V * E if step.zero == 2 and step.ranks > 1 else head  # sent and received, until the next bucket goes
    last_norm = A * (4 * E + 8 + w * E * (2 if config.norm == "rms_weighted" else 1))
    found = {
        "head": shared
        | {
            "gradients": before + head,
            "activations": config.depth * layer + ends + mask + last_norm,
            "logits": _logits(config, step),
        },
        "last_block": shared
        | {
            "gradients": before + flying + 4 * E * F,
            "activations": config.depth * layer + ends + mask,
            "temporaries": backward,
        },
        "first_block": base
        | {
            "cast_weights": casts // config.depth,
            "gradients": before + _whole_gradients(layout, step, head + M - M // config.depth + 4 * E * F),
            "activations": layer + ends + mask,
            "temporaries": backward,
        },
        "embedding": base
        | {
            "gradients": before + _whole_gradients(layout, step, N),
            "temporaries": A * 4 * E + (head if config.tied or _accumulates(step) else 0),
        },
        "exchange": base | {"gradients": before + N, "communication": _exchange(layout, step)},
        "optimizer": base | _update(layout, step),
    }
    return {name: {"total": sum(held.values()), **held} for name, held in found.items()}


def per_rank(config: ModelConfig, step: Step) -> dict[str, int]:
    """Return the peak in bytes by component, and their `total`: the largest of the `moments`."""
    return max(moments(config, step).values(), key=lambda held: held["total"])


def _batch(step: Step) -> int:
    """Bytes of tokens, targets and document numbers of all micro-batches."""
    return step.tokens * step.micro_batches * (20 if step.documents else 16)


def _accumulates(step: Step) -> bool:
    """Whether autograd adds a micro-batch's gradient to the one before it."""
    return step.micro_batches > 1 and not step.in_tree and not (step.zero == 2 and step.ranks > 1)


def _gradients_before(layout: Layout, step: Step, whole: int) -> int:
    """Bytes of gradients that the last micro-batches left: the tree's branches, or the sum so far."""
    shards = sum(4 * bucket.piece for bucket in layout.buckets) if step.ranks > 1 else whole
    if step.in_tree:
        return shards * max(bin(done).count("1") for done in range(step.micro_batches))
    if step.micro_batches == 1:
        return 0
    return shards if step.zero == 2 and step.ranks > 1 else whole


def _whole_gradients(layout: Layout, step: Step, whole: int) -> int:
    """Bytes of gradients during backward: whole ones, or under ZeRO-2 the shards and the buckets on their way."""
    if step.zero < 2 or step.ranks == 1:
        return whole
    sizes = sorted((4 * bucket.piece * step.ranks for bucket in layout.buckets), reverse=True)
    return sum(4 * bucket.piece for bucket in layout.buckets) + 2 * sum(sizes[:AHEAD])


def _logits(config: ModelConfig, step: Step) -> int:
    """Bytes of the head's pass over a chunk: logits, their exponentials, gradients of the hidden states."""
    A, E, V, w = step.tokens, config.width, config.vocab_size, step.width
    if step.whole_logits:
        return A * V * (4 + w)
    n = min(A, max(1, CHUNK_VALUES // V))
    cast = 0 if w == 4 else w * V * E
    passing = n * V * (12 if config.softcap else (8 if w == 4 else 8))
    adding = n * V * w + n * E * (4 + 4) + (0 if w == 4 else V * E * (w + 4))
    if step.compiled:
        passing = n * V * 2 * w
    return A * 4 * E + cast + max(passing, adding)


def _exchange(layout: Layout, step: Step) -> int:
    """Bytes on their way after backward: the first bucket received, the second packed beside its gradients."""
    if step.ranks == 1 or step.zero == 2:
        return 0
    sizes = [4 * bucket.piece * step.ranks for bucket in layout.buckets]
    return sizes[0] + (sizes[1] if len(sizes) > 1 else 0)


def _update(layout: Layout, step: Step) -> dict[str, int]:
    """Gradients and temporaries at the optimizer's peak, group by group in its own order."""
    groups: dict[tuple, list] = {}
    for index, bucket in enumerate(layout.buckets):
        role = layout.roles[bucket.names[0]]
        groups.setdefault((role, layout.parameters[bucket.names[0]] if role == "matrix" else index), []).append(bucket)
    left = 4 * sum(bucket.owned(0) for bucket in layout.buckets)
    worst = (0, 0, 0)
    flights = sorted((4 * b.piece * step.ranks for b in layout.buckets if not b.replicated), reverse=True)[:AHEAD]
    for (role, shape), buckets in groups.items():
        own = 4 * sum(bucket.owned(0) for bucket in buckets)
        if role == "matrix":
            small = min(shape) / max(shape)
            w = step.width / 4
            at_work = int(own * (1 + max(w * 2, 1 + w if w < 1 else 0) + 2 * small * w))
            extra = max(own, at_work - own)
        else:
            single = max((4 * bucket.owned(0) for bucket in buckets), default=0)
            if len(buckets[0].names) > 1:
                single = max(4 * prod(layout.parameters[name]) for name in buckets[0].names)
            extra = 0 if step.compiled else 2 * single
        worst = max(worst, (left + extra, left, extra))
        left -= own
    return {"gradients": worst[1], "temporaries": worst[2], "communication": sum(flights)}


def kv_cache(config: ModelConfig, rows: int, capacity: int, dtype: str = "bfloat16") -> int:
    """Return the bytes of a key/value cache for `rows` sequences of at most `capacity` tokens."""
    return 2 * rows * capacity * config.depth * config.kv_heads * config.head_width * BYTES[dtype]


def micro_batch(config: ModelConfig, rows: int, memory: int, step: Step) -> int:
    """Return the most rows of one forward/backward that divide a rank's `rows` and fit into `memory` bytes.

    1 where nothing fits: the run may then still succeed, and `plan` says that it probably will not.
    """
    fitting = (
        size
        for size in range(min(rows, 64), 1, -1)
        if rows % size == 0
        and per_rank(config, replace(step, rows=size, micro_batches=rows // size))["total"] <= HEADROOM * memory
    )
    return next(fitting, 1)
