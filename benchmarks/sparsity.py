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
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fledgling.bench.infer import NoSpecialTokens, make_random_model
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
from fledgling.model.feed_forward import FeedForward
from fledgling.model.transformer import Transformer, TransformerBlock
from fledgling.text.tokenizer import Tokenizer

SHARES = (0.5, 0.8, 0.9, 0.95)
SHAPES = ((256, 1024), (768, 3072), (1280, 5120))  # (C, F) of depths 4, 12 and 20
STREAMED_BYTES = 1 << 27  # bytes of all matrices together, more than the processor keeps
MAX_LAYERS = 64
SHARE_TOLERANCE = 0.025  # largest distance of a real row's share of zeros from the share that it is measured for
ROWS = 16  # of held-out text


def measure_constructed_rows(repeats: int = 20, shapes: Sequence[tuple[int, int]] = SHAPES) -> list[dict[str, Any]]:
    """Returns milliseconds of a product, whole and skipping, for each dtype, shape and share of zeros.

    Medians over `repeats` rounds.
    """
    results = []
    generator = torch.Generator().manual_seed(0)
    for dtype in list_dtypes():
        for width, intermediate_size in shapes:
            layers = max(4, min(MAX_LAYERS, STREAMED_BYTES // (width * intermediate_size * dtype.itemsize)))
            weights = [torch.randn(width, intermediate_size, generator=generator).to(dtype) for _ in range(layers)]
            pairs = [(pack_weight(weight), ZeroSkippingWeight(weight, weight)) for weight in weights]
            for share in SHARES:
                rows = [_make_row(intermediate_size, share, generator).to(dtype) for _ in range(layers)]
                results.append(
                    {"C": width, "F": intermediate_size, **_compare_products(pairs, rows, share, dtype, repeats)}
                )
                print(format_products(results[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    return results


def measure_real_rows(checkpoint: Path, repeats: int = 20) -> dict[str, Any]:
    """Measures products and decoding with the matrices and activations of a checkpoint.

    Returns:
        "zeros": share of zeros by layer; "products": as `measure_constructed_rows`; "decode": milliseconds a token.

    Raises:
        UserError: the activation is not ReLU^2, or the checkpoint is not in a run directory with held-out text.
    """
    model, tokenizer, _ = load_model(checkpoint)
    if model.config.activation != "relu2":
        raise UserError(
            f"{checkpoint}: the activation is {model.config.activation}, which gives no zeros; expected relu2"
        )
    batch = _read_held_out_batch(checkpoint, model, tokenizer.bos)
    rows = _record_activations(model, batch)
    results = []
    for dtype in list_dtypes():
        weights = [mlp.fc2.weight.detach().to(dtype) for mlp in _feed_forwards(model)]
        pairs = [(pack_weight(weight), ZeroSkippingWeight(weight, weight)) for weight in weights]
        for share in SHARES:
            near = [
                [row for row in layer if abs(float((row == 0).double().mean()) - share) < SHARE_TOLERANCE]
                for layer in rows
            ]
            chosen = [(layer, row.to(dtype)) for layer, some in enumerate(near) for row in some[:MAX_LAYERS]]
            if chosen:
                picked = [pairs[layer] for layer, _ in chosen]
                results.append(_compare_products(picked, [row for _, row in chosen], share, dtype, repeats))
    return {
        "zeros": {one.name: one.value for one in measure_activation_sparsity(model, [batch])},
        "products": results,
        "decode": [_time_decoding(model, dtype, batch.tokens[0, :32].tolist()) for dtype in list_dtypes()],
    }


def list_dtypes() -> list[torch.dtype]:
    """Returns fp32, and bf16 if the processor can multiply it."""
    return [torch.float32, torch.bfloat16] if can_pack_bf16(torch.device("cpu"), torch.bfloat16) else [torch.float32]


def pack_weight(weight: Tensor) -> Tensor | PackedWeight:
    """Returns the weight in the form in which the engine multiplies it without skipping."""
    return PackedWeight(weight) if weight.dtype == torch.bfloat16 else weight


def _make_row(intermediate_size: int, share: float, generator: torch.Generator) -> Tensor:
    row = torch.rand(1, intermediate_size, generator=generator) + 0.1
    row[0, torch.randperm(intermediate_size, generator=generator)[: round(share * intermediate_size)]] = 0
    return row


@torch.inference_mode()
def _compare_products(
    pairs: Sequence[tuple], rows: Sequence[Tensor], share: float, dtype: torch.dtype, repeats: int
) -> dict:
    for _, skipping in pairs:
        skipping.max_active = skipping.shape[1]  # measured even where the engine would not skip
    products: dict[str, Callable] = {"whole": lambda pair, row: F.linear(row, pair[0])}
    products["skipping"] = lambda pair, row: F.linear(row, pair[1])
    times: dict[str, list[float]] = {name: [] for name in products}
    for _ in range(repeats + 1):
        for name, multiply in products.items():
            start = time.perf_counter()
            for pair, row in zip(pairs, rows, strict=True):
                multiply(pair, row)
            times[name].append((time.perf_counter() - start) / len(rows))
    seconds = {name: statistics.median(kept[1:]) for name, kept in times.items()}
    named = {name: 1e3 * value for name, value in seconds.items()}
    kind = str(dtype).removeprefix("torch.")
    return {"dtype": kind, "share": share, "rows": len(rows), **named, "ratio": seconds["whole"] / seconds["skipping"]}


def _read_held_out_batch(checkpoint: Path, model: Transformer, bos: int) -> Batch:
    run = next((path for path in (checkpoint, *checkpoint.resolve().parents) if (path / "data").is_dir()), None)
    shards = sorted((run / "data").glob("*-validation-*/manifest.json")) if run else []
    if not shards:
        raise UserError(f"{checkpoint}: expected a run directory with held-out text in RUN/data/*-validation-*")
    rows = RowSource(TokenShard.open(shards[0].parent), "crop", model.config.context, seed=0, bos=bos)
    return read_first_rows(rows, ROWS, ROWS)[0]


def _feed_forwards(model: Transformer) -> list[FeedForward]:
    """Returns the feed-forward of each block, of a model without gates."""
    modules = [cast(TransformerBlock, block).mlp for block in model.blocks]
    return cast(list[FeedForward], modules)


@torch.no_grad()
def _record_activations(model: Transformer, batch: Batch) -> list[list[Tensor]]:
    """Returns the inputs of each layer's second matrix: rows (1, F)."""
    recorded: list[Tensor] = []
    hooks = [
        mlp.register_forward_pre_hook(lambda mlp, inputs: recorded.append(mlp.compute_activations(*inputs)))
        for mlp in _feed_forwards(model)
    ]
    model(batch.tokens, batch.document_ids)
    for hook in hooks:
        hook.remove()
    return [list(layer.flatten(0, 1)[:, None].unbind()) for layer in recorded]


def measure_decoding(repeats: int = 3, depth: int = 6, width: int = 768) -> list[dict[str, Any]]:
    """Returns milliseconds a token of models with random weights and equal numbers of parameters.

    ReLU^2 whole and skipping, at each share of zeros; GELU and SwiGLU, which have no zeros.
    """
    results = []
    sizes: dict[str, Any] = {
        "vocab_size": 4096,
        "depth": depth,
        "width": width,
        "heads": width // 128,
        "kv_heads": width // 128,
    }
    for dtype in list_dtypes():
        for activation, share in (*(("relu2", share) for share in SHARES), ("gelu", 0.0), ("swiglu", 0.0)):
            config = ModelConfig(
                family="fledgling", **sizes, context=256, activation=activation, preset="nanochat-2025"
            )
            model = make_random_model(config, dtype, torch.device("cpu"))
            for mlp in _feed_forwards(model) if activation == "relu2" else ():
                # Of the other rows half give negative values, so that a share of `share` is zero.
                mlp.fc1.weight.data[: round((2 * share - 1) * config.intermediate_size)] = 0
            timed = _time_decoding(model, dtype, list(range(32)), 24, repeats, activation == "relu2")
            results.append({"activation": activation, "parameters": model.count_parameters(), "share": share, **timed})
            print(format_decoding(results[-1]), file=sys.stderr, flush=True)
    return results


def _time_decoding(
    model: Transformer, dtype: torch.dtype, prompt: list[int], tokens: int = 96, repeats: int = 5, skips: bool = True
) -> dict[str, Any]:
    """Returns median milliseconds a token without skipping and, if `skips`, with it; the two engines alternate."""
    tokenizer = cast(Tokenizer, NoSpecialTokens())  # no token ends the answer
    products = ("whole", "skipping") if skips else ("whole",)
    engines = {name: Engine(model, tokenizer, dtype=dtype, skip_zeros=name == "skipping") for name in products}
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


def format_decoding(row: dict[str, Any]) -> str:
    """Returns the decoding speed of a model as one line of text."""
    skipping = f", skipping {row['skipping']:.2f} ({row['whole'] / row['skipping']:.2f}x)" if "skipping" in row else ""
    what = (
        f"{row['activation']}, {row['parameters']:,} parameters, {row['share']:.0%} zeros: " if "share" in row else ""
    )
    return f"{row['dtype']}: {what}{row['whole']:.2f} ms a token{skipping}"


def format_products(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the times of products as a table."""
    lines = [f"{'':<10}{'C x F':>12}{'zeros':>7}{'whole ms':>10}{'skipping':>10}{'ratio':>7}"]
    for row in rows:
        shape = f"{row['C']} x {row['F']}" if "C" in row else f"{row['rows']} rows"
        cells = f"{row['share']:>7.0%}{row['whole']:>10.4f}{row['skipping']:>10.4f}{row['ratio']:>7.2f}"
        lines.append(f"{row['dtype']:<10}{shape:>12}{cells}")
    return "\n".join(lines)


def format_sparsity(results: dict[str, Any]) -> str:
    """Returns the tables of the constructed products, of decoding, and of a run's own rows where one was given."""
    parts = [format_products(results["constructed"]), *map(format_decoding, results["decoded"])]
    if results["real"]:
        zeros = ", ".join(f"{name} {share:.1%}" for name, share in results["real"]["zeros"].items())
        parts += [format_products(results["real"]["products"]), zeros, *map(format_decoding, results["real"]["decode"])]
    return "\n".join(parts)
