"""Compares the time of FlashNorm with plain RMSNorm, in training steps and in decoding.

All models compute the same function with the same weights. Each round times every variant once; the figure is the
median of the ratios within a round, which other load on the machine changes least.

    plain     norm, then product          deferred   product, then 1 / RMS
    folded    the norms' weights are in the matrices (llama only; elsewhere the same as plain)
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import torch

from fledgling.bench.infer import NoSpecialTokens, make_random_model
from fledgling.config import ModelConfig, OptimizerConfig
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams
from fledgling.model.build import build_model
from fledgling.model.flash_norm import drop_norm_weights, fold_norm_weights
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.runtime.device import DTYPES, DeviceSetup, should_compile
from fledgling.runtime.world import World
from fledgling.text.tokenizer import Tokenizer
from fledgling.train import loop
from fledgling.train.loss import next_token_loss
from fledgling.train.random_batches import RandomBatches
from fledgling.train.stage import Stage

TRAINED = (("fledgling", 2, 256), ("llama", 2, 256), ("fledgling", 2, 768), ("llama", 2, 768))  # family, layers, width
DECODED = (("fledgling", 4, 256), ("llama", 4, 256), ("fledgling", 6, 768), ("llama", 6, 768))
VOCABULARY, TOKENS = 1024, 1024  # of a training step: few, so that blocks decide


def measure_flash_norm(
    dtype: str = "bfloat16", compiled: bool = False, repeats: int = 7, shapes: Mapping[str, tuple] | None = None
) -> list[dict[str, Any]]:
    """Returns milliseconds of each variant and its ratio to plain, for training steps and for decoding one row."""
    rows = []
    compiled = compiled and should_compile("auto", torch.device("cpu"))
    shapes = shapes or {"train": TRAINED, "decode": DECODED}
    for what, make in (("train", _make_training_timers), ("decode", _make_decoding_timers)):
        for family, depth, width in shapes[what]:
            config = ModelConfig(
                family=family,
                vocab_size=VOCABULARY,
                depth=depth,
                width=width,
                heads=width // 128,
                kv_heads=width // 128,
                context=256,
                preset="nanochat-2025",
            )
            timers = make(config, dtype, compiled)
            shape = f"{family} {depth} x {width}"
            rows.append({"what": what, "shape": shape, "dtype": dtype, **_time_rounds(timers, repeats)})
            print(format_flash_norm(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
            if compiled:
                torch.compiler.reset()
    return rows


def _time_rounds(timers: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, Any]:
    """Returns the median milliseconds of each variant, and the median over rounds of its ratio to plain."""
    rounds = [{name: measure() for name, measure in timers.items()} for _ in range(repeats + 2)][
        2:
    ]  # the first two compile
    return {
        "ms": {name: 1e3 * statistics.median(one[name] for one in rounds) for name in timers},
        "ratio": {name: statistics.median(one[name] / one["plain"] for one in rounds) for name in timers},
    }


def _make_training_timers(config: ModelConfig, dtype: str, compiled: bool) -> dict[str, Callable[[], float]]:
    world, batch = World.start("cpu"), RandomBatches(VOCABULARY, TOKENS // config.context, config.context).batch
    stage = Stage("bench", 1, None, next_token_loss, lambda progress: 1.0)  # type: ignore[arg-type]

    def make_timer(flash: bool) -> Callable[[], float]:
        model = build_model(replace(config, flash_norm=flash), DeviceSetup(DTYPES[dtype], compiled, 0.0), world.device)
        model.initialize(0)
        optimizer = Optimizer(model, OptimizerConfig(), world, dtype=DTYPES[dtype])

        def run() -> float:
            start = time.perf_counter()
            loop.train_step(stage, model, optimizer, [batch], world)
            return time.perf_counter() - start

        return run

    return {"plain": make_timer(False), "deferred": make_timer(True)}


def _make_decoding_timers(config: ModelConfig, dtype: str, compiled: bool) -> dict[str, Callable[[], float]]:
    plain = make_random_model(config, DTYPES[dtype], torch.device("cpu"))
    models = {"plain": plain, "deferred": _copy_with_state(plain, replace(config, flash_norm=True), plain.state_dict())}
    if config.norm == "rms_weighted":
        unweighted, state = drop_norm_weights(config, fold_norm_weights(config, plain.state_dict()))
        models["folded"] = _copy_with_state(plain, unweighted, state)
        models["folded, deferred"] = _copy_with_state(plain, replace(unweighted, flash_norm=True), state)
    prompt = torch.randint(VOCABULARY, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    tokenizer = cast(Tokenizer, NoSpecialTokens())

    def make_timer(model: Transformer) -> Callable[[], float]:
        engine = Engine(model, tokenizer, dtype=DTYPES[dtype])

        def run() -> float:
            stamps = [
                time.perf_counter()
                for _ in engine.stream(prompt, SamplingParams(temperature=0, max_new_tokens=32), use_tools=False)
            ]
            return statistics.median(b - a for a, b in pairwise(stamps[:-1]))  # the last is the finish event

        return run

    return {name: make_timer(model) for name, model in models.items()}


def _copy_with_state(model: Transformer, config: ModelConfig, state: Mapping[str, torch.Tensor]) -> Transformer:
    other = Transformer(config, model.compute_dtype)
    other.load_state_dict(state)
    return other


def format_flash_norm(rows: list[dict[str, Any]]) -> str:
    """Returns the result of `measure_flash_norm` as a table."""
    lines = [f"{'':<8}{'':<20}{'dtype':<10}{'plain ms':>9}  of plain's time"]
    for row in rows:
        others = ", ".join(f"{name} {ratio:.3f}" for name, ratio in row["ratio"].items() if name != "plain")
        lines.append(f"{row['what']:<8}{row['shape']:<20}{row['dtype']:<10}{row['ms']['plain']:>9.2f}  {others}")
    return "\n".join(lines)
