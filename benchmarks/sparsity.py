"""Measures how much faster a product of one row is when the zeros of its input are skipped.

As in decoding, a row is multiplied by the matrices of many layers in turn, so that none stays in a cache. The dense
product and the skipping one alternate on the same rows, and their ratio counts. Rows are constructed, with a given
share of zeros at random positions, or real: the inputs of a checkpoint's second feed-forward matrices on held-out text.

C width, F intermediate size.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fledgling.bench.infer import make_random_model
from fledgling.config import ModelConfig, UserError
from fledgling.data.batch import Batch
from fledgling.data.shards import TokenShard
from fledgling.data.stream import RowSource
from fledgling.evals.bpb import read_first_rows
from fledgling.evals.sparsity import measure_activation_sparsity
from fledgling.infer.engine import Engine
from fledgling.infer.runner import load_model
from fledgling.infer.sampling import SamplingParams
from fledgling.kernels.packed_weight import PackedWeight, can_pack_bf16
from fledgling.kernels.zero_skipping import ZeroSkippingWeight
from fledgling.model.transformer import Transformer

SHARES = (0.5, 0.8, 0.9, 0.95)
SHAPES = ((256, 1024), (768, 3072), (1280, 5120))  # (C, F) of depths 4, 12 and 20
STREAMED = 1 << 27  # bytes of all matrices together, more than the processor keeps
MOST_LAYERS = 64
NEAR = 0.025  # a real row counts for a share that it is so close to
ROWS = 16  # of held-out text


def constructed(repeats: int = 20, shapes: Sequence[tuple[int, int]] = SHAPES) -> list[dict[str, Any]]:
    """Milliseconds a product, whole and skipping, by dtype, shape and share of zeros: medians over `repeats` rounds."""
    found = []
    draw = torch.Generator().manual_seed(0)
    for dtype in dtypes():
        for width, hidden in shapes:
            layers = max(4, min(MOST_LAYERS, STREAMED // (width * hidden * dtype.itemsize)))
            weights = [torch.randn(width, hidden, generator=draw).to(dtype) for _ in range(layers)]
            pairs = [(whole(weight), ZeroSkippingWeight(weight, weight)) for weight in weights]
            for share in SHARES:
                rows = [_row(hidden, share, draw).to(dtype) for _ in range(layers)]
                found.append({"C": width, "F": hidden, **_compared(pairs, rows, share, dtype, repeats)})
                print(format_products(found[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    return found


def real(checkpoint: Path, repeats: int = 20) -> dict[str, Any]:
    """The same on a checkpoint's own rows and matrices, its zeros by layer, and tokens a second of both engines.

    Raises UserError for another activation, and where the run's held-out text is not beside the checkpoint.
    """
    model, tokenizer, _ = load_model(checkpoint)
    if model.config.activation != "relu2":
        raise UserError(
            f"{checkpoint}: the activation is {model.config.activation}, which gives no zeros; expected relu2"
        )
    batch = _held_out(checkpoint, model, tokenizer.bos)
    rows = _hidden_rows(model, batch)
    found = []
    for dtype in dtypes():
        weights = [block.mlp.fc2.weight.detach().to(dtype) for block in model.blocks]
        pairs = [(whole(weight), ZeroSkippingWeight(weight, weight)) for weight in weights]
        for share in SHARES:
            near = [[row for row in layer if abs(float((row == 0).double().mean()) - share) < NEAR] for layer in rows]
            chosen = [(layer, row.to(dtype)) for layer, some in enumerate(near) for row in some[:MOST_LAYERS]]
            if chosen:
                picked = [pairs[layer] for layer, _ in chosen]
                found.append(_compared(picked, [row for _, row in chosen], share, dtype, repeats))
    return {
        "zeros": {one.name: one.value for one in measure_activation_sparsity(model, [batch])},
        "products": found,
        "decode": [_decoded(model, dtype, batch.tokens[0, :32].tolist()) for dtype in dtypes()],
    }


def dtypes() -> list[torch.dtype]:
    """fp32, and bf16 where the processor multiplies it."""
    return [torch.float32, torch.bfloat16] if can_pack_bf16(torch.device("cpu"), torch.bfloat16) else [torch.float32]


def whole(weight: Tensor) -> Tensor | PackedWeight:
    """The weight as the engine multiplies it where it does not skip."""
    return PackedWeight(weight) if weight.dtype == torch.bfloat16 else weight


def _row(hidden: int, share: float, draw: torch.Generator) -> Tensor:
    row = torch.rand(1, hidden, generator=draw) + 0.1
    row[0, torch.randperm(hidden, generator=draw)[: round(share * hidden)]] = 0
    return row


@torch.inference_mode()
def _compared(pairs: Sequence[tuple], rows: Sequence[Tensor], share: float, dtype: torch.dtype, repeats: int) -> dict:
    for _, skipping in pairs:
        skipping.max_active = skipping.shape[1]  # it is to be measured where it would not be taken, too
    ways: dict[str, Callable] = {"whole": lambda pair, row: F.linear(row, pair[0])}
    ways["skipping"] = lambda pair, row: F.linear(row, pair[1])
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            for pair, row in zip(pairs, rows, strict=True):
                way(pair, row)
            times[name].append((time.perf_counter() - began) / len(rows))
    seconds = {name: statistics.median(kept[1:]) for name, kept in times.items()}
    named = {name: 1e3 * value for name, value in seconds.items()}
    kind = str(dtype).removeprefix("torch.")
    return {"dtype": kind, "share": share, "rows": len(rows), **named, "ratio": seconds["whole"] / seconds["skipping"]}


def _held_out(checkpoint: Path, model: Transformer, bos: int) -> Batch:
    run = next((path for path in (checkpoint, *checkpoint.resolve().parents) if (path / "data").is_dir()), None)
    shards = sorted((run / "data").glob("*-validation-*/manifest.json")) if run else []
    if not shards:
        raise UserError(
            f"{checkpoint}: no held-out text lies beside it (RUN/data/*-validation-*); expected a run directory"
        )
    rows = RowSource(TokenShard.open(shards[0].parent), "crop", model.config.context, seed=0, bos=bos)
    return read_first_rows(rows, ROWS, ROWS)[0]


@torch.no_grad()
def _hidden_rows(model: Transformer, batch: Batch) -> list[list[Tensor]]:
    """What each layer's second matrix reads: rows (1, F)."""
    seen: list[Tensor] = []
    hooks = [
        block.mlp.register_forward_pre_hook(lambda mlp, given: seen.append(mlp.compute_activations(*given)))
        for block in model.blocks
    ]
    model(batch.tokens, batch.document_ids)
    for hook in hooks:
        hook.remove()
    return [list(layer.flatten(0, 1)[:, None].unbind()) for layer in seen]


def decoded(repeats: int = 3, depth: int = 6, width: int = 768) -> list[dict[str, Any]]:
    """Milliseconds a token of models with random weights and as many parameters: ReLU^2 whole and skipping, at each
    share of zeros, beside GELU and SwiGLU, which have none."""
    found = []
    sizes = {"vocab_size": 4096, "depth": depth, "width": width, "heads": width // 128, "kv_heads": width // 128}
    for dtype in dtypes():
        for activation, share in (*(("relu2", share) for share in SHARES), ("gelu", 0.0), ("swiglu", 0.0)):
            config = ModelConfig(family="fledgling", **sizes, context=256, activation=activation)
            model = make_random_model(config, dtype, torch.device("cpu"))
            for block in model.blocks if activation == "relu2" else ():  # of what is left, half is negative
                block.mlp.fc1.weight.data[: round((2 * share - 1) * config.intermediate_size)] = 0
            timed = _decoded(model, dtype, list(range(32)), 24, repeats, activation == "relu2")
            found.append({"activation": activation, "parameters": model.count_parameters(), "share": share, **timed})
            print(line(found[-1]), file=sys.stderr, flush=True)
    return found


def _decoded(
    model: Transformer, dtype: torch.dtype, prompt: list[int], tokens: int = 96, repeats: int = 5, skips: bool = True
) -> dict[str, Any]:
    """Median milliseconds a token of a plain and a skipping engine, in turn."""
    quiet = SimpleNamespace(special={}, start=None)  # no token ends the answer
    ways = ("whole", "skipping") if skips else ("whole",)
    engines = {name: Engine(model, quiet, dtype=dtype, skip_zeros=name == "skipping") for name in ways}
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(repeats):
        for name, engine in engines.items():
            last = None
            for _ in engine.stream(prompt, SamplingParams(temperature=0, max_new_tokens=tokens), use_tools=False):
                now = time.perf_counter()
                times[name] += [] if last is None else [now - last]
                last = now
    named = {name: 1e3 * statistics.median(kept) for name, kept in times.items()}
    return {"dtype": str(dtype).removeprefix("torch."), **named}


def line(row: dict[str, Any]) -> str:
    """A model that decodes, for people."""
    skipping = f", skipping {row['skipping']:.2f} ({row['whole'] / row['skipping']:.2f}x)" if "skipping" in row else ""
    what = (
        f"{row['activation']}, {row['parameters']:,} parameters, {row['share']:.0%} zeros: " if "share" in row else ""
    )
    return f"{row['dtype']}: {what}{row['whole']:.2f} ms a token{skipping}"


def format_products(rows: Sequence[dict[str, Any]]) -> str:
    """Products as lines for people."""
    lines = [f"{'':<10}{'C x F':>12}{'zeros':>7}{'whole ms':>10}{'skipping':>10}{'ratio':>7}"]
    for row in rows:
        shape = f"{row['C']} x {row['F']}" if "C" in row else f"{row['rows']} rows"
        cells = f"{row['share']:>7.0%}{row['whole']:>10.4f}{row['skipping']:>10.4f}{row['ratio']:>7.2f}"
        lines.append(f"{row['dtype']:<10}{shape:>12}{cells}")
    return "\n".join(lines)


def format_sparsity(found: dict[str, Any]) -> str:
    """Returns the tables of the constructed products, of decoding, and of a run's own rows where one was given."""
    parts = [format_products(found["constructed"]), *map(line, found["decoded"])]
    if found["real"]:
        zeros = ", ".join(f"{name} {share:.1%}" for name, share in found["real"]["zeros"].items())
        parts += [format_products(found["real"]["products"]), zeros, *map(line, found["real"]["decode"])]
    return "\n".join(parts)
