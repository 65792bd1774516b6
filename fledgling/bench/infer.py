"""`bench infer`: time to the first token and tokens per second, with the machine's limits.

Prefill is limited by arithmetic. Each further token is limited by memory bandwidth: it reads every weight and every
cached key and value once. Both limits are measured in the same run, with a matrix product and a read of as many bytes
as the backend's weights have (a cache holds a part of few bytes), and each result is also given as a share of them. The
engine runs the model in the run's dtype and quantized; in turn, and with the same weights, run
`transformers.generate`, and llama.cpp for models of the llama family (backends.py).

Weights are random, so the answers mean nothing; tokens are sampled greedily.

B rows, T tokens of a prompt.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch

from fledgling.bench.backends import (
    LLAMA_CPP_FORMATS,
    EngineBackend,
    GenerationBackend,
    LlamaCppBackend,
    TransformersBackend,
)
from fledgling.config import ModelConfig, Recipe, UserError
from fledgling.export import llama_cpp
from fledgling.infer.engine import Engine
from fledgling.kernels import native
from fledgling.kernels.format import DEFAULT_GROUP_SIZES
from fledgling.kernels.quantized_model import load_quantized_model, quantize_state_dict
from fledgling.model.cache import CacheRow
from fledgling.model.transformer import Transformer
from fledgling.plan import inference
from fledgling.plan.flops import forward_flops
from fledgling.runtime.device import PEAK_TRIES, choose_setup, measure_peak_flops, name_dtype, set_up_device
from fledgling.runtime.world import World
from fledgling.text.tokenizer import Tokenizer

TABLES = ("model", "run")  # of a recipe, that the measured model follows
STREAM_BYTES = 1 << 28  # bytes of the streaming read on a CPU


@dataclass(frozen=True)
class InferenceCase:
    """One setting of the benchmark."""

    batch: int  # prompts at once
    context: int  # tokens of each prompt


@dataclass(frozen=True)
class NoSpecialTokens:
    """Replaces the tokenizer: without special tokens no answer ends early."""

    special_tokens: dict[str, int] = field(default_factory=dict)
    bos_or_none: int | None = None
    end_tokens: frozenset[int] = frozenset()


CaseTimes = dict[tuple[InferenceCase, str], list[list[float]]]  # by case and backend, of each run the tokens' seconds


def measure_inference(
    recipe: Recipe,
    batches: Sequence[int] = (1, 8, 32),
    contexts: Sequence[int] = (256, 1024),
    tokens: int = 32,
    repeats: int = 3,
    peers: bool = True,
    bits: Sequence[int] = (16, 8, 4),
) -> dict[str, Any]:
    """Times every batch size with the first of `contexts`, and every other context with one row.

    Args:
        recipe: model, dtype and device.
        batches: numbers of prompts at once.
        contexts: tokens of a prompt.
        tokens: sampled for each prompt.
        repeats: runs of every case; backends take turns.
        peers: also run transformers and llama.cpp where they are installed.
        bits: of the weights; 16 is the dtype of the run, 8 and 4 are quantized.

    Returns:
        Machine limits and one row a backend and case: medians over all steps, and the best step. JSON types only.
        "notes": shares above 1, although the limits were measured again.

    Raises:
        UserError: a number below 1, other bits, or a context too small for the tokens.
    """
    cases = _make_cases(batches, contexts, tokens, repeats, recipe.model.context)
    if not bits or set(bits) - {16, 8, 4}:
        raise UserError(f"bits: got {' '.join(map(str, bits)) or 'nothing'}, expected some of 16, 8 and 4")
    world = World.start(recipe.run.device)
    dtype = name_dtype(choose_setup(recipe.run, world).engine_dtype)
    device, setup = world.device, set_up_device(replace(recipe.run, dtype=dtype), world)
    config = recipe.resolve_model()
    model = make_random_model(config, setup.dtype, device)
    max_context = max(contexts) + tokens + 1
    with TemporaryDirectory() as folder:
        backends = _make_backends(model, setup.dtype, bits, peers, Path(folder), max_context)
    prompts = _random_prompts(config, max(case.batch for case in cases), max(case.context for case in cases))
    sizes = {name: backend.weight_bytes_read for name, backend in backends.items()}
    bandwidths = {name: measure_stream_bandwidth(device, size) for name, size in sizes.items()}
    times: CaseTimes = {}
    for repeat in range(repeats):
        _time_cases(cases, backends, prompts, tokens, times, f"{repeat + 1}/{repeats}")
        for name, size in sizes.items():
            bandwidths[name] = max(bandwidths[name], measure_stream_bandwidth(device, size))
    print(file=sys.stderr)
    peak = max(setup.peak_flops, measure_peak_flops(device, setup.dtype))

    def make_rows() -> list[dict[str, Any]]:
        return [
            {
                "engine": name,
                **asdict(case),
                **_result_row(config, case, setup.dtype_name, backends[name], runs, bandwidths[name], peak),
            }
            for (case, name), runs in times.items()
        ]

    rows = make_rows()
    if find_exceeded_limits(rows):  # on a machine that was busy while a limit was measured it is too low
        for name, size in sizes.items():
            tries = (measure_stream_bandwidth(device, size) for _ in range(PEAK_TRIES))
            bandwidths[name] = max(bandwidths[name], *tries)
        peak = max(peak, *(measure_peak_flops(device, setup.dtype) for _ in range(PEAK_TRIES)))
        rows = make_rows()
    return {
        "parameters": model.count_parameters(),
        "dtype": setup.dtype_name,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "limits": {"bytes_per_second": bandwidths, "flops": peak},
        "rows": rows,
        "llama_cpp": _describe_llama_cpp(backends),
        "notes": find_exceeded_limits(rows),
        "logits_differ": _logits_difference(backends, prompts[0][: contexts[0]]),
    }


def _time_cases(
    cases: Sequence[InferenceCase],
    backends: dict[str, GenerationBackend],
    prompts: list[list[int]],
    tokens: int,
    times: CaseTimes,
    status: str,
) -> None:
    """Runs every case once with every backend that takes its batch; appends the seconds of each token to `times`."""
    for case in cases:
        for name, backend in backends.items():
            if case.batch > backend.max_batch_size:
                continue
            described = f"{name}, batch {case.batch}, context {case.context}"
            print(f"\r{status} {described:<50}", end="", file=sys.stderr, flush=True)
            case_prompts = [prompt[: case.context] for prompt in prompts[: case.batch]]
            times.setdefault((case, name), []).append(backend.generate(case_prompts, tokens))


def find_exceeded_limits(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a line for each kind of share that is above 1 in some row: the measured limit is not the row's limit."""
    notes = []
    for share, why in (
        ("share_of_bandwidth", "the read was measured on a busy machine"),
        ("share_of_bandwidth_best", "the read was measured on a busy machine"),
        ("share_of_flops", "the peak was measured on a busy machine"),
        ("prefill_share_of_flops", "the peak was measured on a busy machine"),
    ):
        engines = [f"{row['engine']} {row['batch']} x {row['context']}" for row in rows if row[share] > 1]
        if engines:
            notes.append(f"{share.replace('_', ' ')} above 100 %: {', '.join(engines)}; {why}")
    return notes


def _make_backends(
    model: Transformer,
    dtype: torch.dtype,
    bits: Sequence[int],
    peers: bool,
    folder: Path,
    max_context: int,
) -> dict[str, GenerationBackend]:
    """Returns the backends that are available, by name."""
    config, tokenizer = model.config, cast(Tokenizer, NoSpecialTokens())
    device = model.embedding.weight.device
    backends: dict[str, GenerationBackend] = {}
    for width in bits:
        if width == 16:
            backends["fledgling"] = EngineBackend(Engine(model, tokenizer))
            continue
        packed = quantize_state_dict(config, model.state_dict(), width, DEFAULT_GROUP_SIZES[width])
        quantized = load_quantized_model(config, packed, {"bits": width}, device, dtype)
        backends[f"fledgling int{width}"] = EngineBackend(Engine(quantized, tokenizer))
    if peers and find_spec("transformers"):
        backends["transformers"] = TransformersBackend(model, dtype, device)
    is_llama = device.type == "cpu" and config.family == "llama"
    if peers and is_llama and find_spec("gguf") and llama_cpp.load_llama_library() is not None:
        for width in bits:
            backends[f"llama.cpp {LLAMA_CPP_FORMATS[width]}"] = LlamaCppBackend(model, width, folder, max_context)
    return backends


def _describe_llama_cpp(backends: dict[str, GenerationBackend]) -> str | None:
    """Returns which llama.cpp ran, of which package and with which instructions; None if none did."""
    library = next((backend.library for backend in backends.values() if isinstance(backend, LlamaCppBackend)), None)
    return library and llama_cpp.describe_llama_library(library)


def _make_cases(
    batches: Sequence[int], contexts: Sequence[int], tokens: int, repeats: int, max_context: int
) -> list[InferenceCase]:
    """Returns the cases; raises UserError for values out of range."""
    for name, values in (("batch", batches), ("context", contexts), ("tokens", [tokens]), ("repeats", [repeats])):
        if not values or min(values) < 1:
            raise UserError(f"{name}: got {' '.join(map(str, values)) or 'nothing'}, expected at least 1")
    if tokens < 2:
        raise UserError(f"tokens: got {tokens}, expected at least 2: the first comes with the prompt")
    if max(contexts) + tokens + 1 > max_context:
        raise UserError(f"context: got {max(contexts)} and {tokens} tokens, but the model's context is {max_context}")
    return [
        *(InferenceCase(batch, contexts[0]) for batch in batches),
        *(InferenceCase(1, context) for context in contexts[1:]),
    ]


def _result_row(
    config: ModelConfig,
    case: InferenceCase,
    dtype: str,
    backend: GenerationBackend,
    runs: list[list[float]],
    bandwidth: float,
    peak: float,
) -> dict[str, float]:
    """Returns the results of one backend and case: medians, the best step, and shares of the limits.

    Args:
        runs: of each repeat, the seconds of each token.
        bandwidth: bytes per second of a read of as many bytes as the weights.
        peak: FLOP/s.
    """
    first = statistics.median(times[0] for times in runs)
    steps = [second for times in runs for second in times[1:]]
    step, length = statistics.median(steps), case.context + len(runs[0]) / 2  # mean number of cached tokens
    costs = inference.decode_cost(config, round(length), dtype, case.batch)
    bytes_read = backend.weight_bytes_read + inference.kv_cache_bytes(config, case.batch, round(length), dtype)
    prompt = forward_flops(config, case.context, "causal")  # of a token; the head multiplies the last one alone
    prompt_flops = case.batch * (case.context * (prompt["total"] - prompt["head"]) + prompt["head"])
    return {
        "time_to_first_token": first,
        "prefill_tokens_per_second": case.batch * case.context / first,
        "prefill_share_of_flops": prompt_flops / first / peak,
        "tokens_per_second": case.batch / step,
        "tokens_per_second_best": case.batch / min(steps),
        "bytes_per_step": bytes_read,
        "share_of_bandwidth": bytes_read / step / bandwidth,
        "share_of_bandwidth_best": bytes_read / min(steps) / bandwidth,
        "share_of_flops": case.batch * costs["flops_per_token"] / step / peak,
    }


def _logits_difference(backends: dict[str, GenerationBackend], prompt: list[int]) -> float | None:
    """Returns the largest difference between the engine's and transformers' logits, in standard deviations."""
    engine_backend, reference = backends.get("fledgling"), backends.get("transformers")
    if not isinstance(engine_backend, EngineBackend) or not isinstance(reference, TransformersBackend):
        return None
    with torch.inference_mode():
        runner = engine_backend.engine.runner
        hidden = runner.extend_cache(runner.new_cache(), [CacheRow()], [prompt])
        logits, reference_logits = runner.compute_logits(hidden[0, -1]).float(), reference.logits(prompt)
    return float((logits - reference_logits).abs().max() / reference_logits.std())


def format_inference_table(result: dict[str, Any]) -> str:
    """Formats the result of `measure_inference` as text: medians, and the best step in columns marked (best)."""
    limits = result["limits"]
    lines = [
        f"{result['parameters']:,} parameters, {result['dtype']}, {result['device']}, {result['threads']} threads; "
        f"multiplies {limits['flops'] / 1e9:,.0f} GFLOP/s; reads, of as many bytes as the weights have, in GB/s: "
        + ", ".join(f"{name} {speed / 1e9:.1f}" for name, speed in limits["bytes_per_second"].items()),
        f"{'':<29}{'first token':^26}{'each further token':^44}",
        f"{'':<16}{'batch':>5}{'context':>8}{'ms':>9}{'tok/s':>8}{'FLOP/s':>8}"
        f"{'tok/s':>8}{'(best)':>9}{'bandwidth':>11}{'(best)':>8}{'FLOP/s':>8}",
    ]
    for row in result["rows"]:
        lines.append(
            f"{row['engine']:<16}{row['batch']:>5}{row['context']:>8}{row['time_to_first_token'] * 1e3:>9,.0f}"
            f"{row['prefill_tokens_per_second']:>8,.0f}{row['prefill_share_of_flops']:>8.1%}"
            f"{row['tokens_per_second']:>8,.1f}{row['tokens_per_second_best']:>9,.1f}"
            f"{row['share_of_bandwidth']:>11.1%}{row['share_of_bandwidth_best']:>8.1%}{row['share_of_flops']:>8.1%}"
        )
    lines += format_peer_ratios(result["rows"])
    if result["llama_cpp"]:
        lines.append(result["llama_cpp"])
    if result["logits_differ"] is not None:
        lines.append(f"logits after a prompt differ by at most {result['logits_differ']:.2g} standard deviations")
    return "\n".join([*lines, *result["notes"]])


def format_peer_ratios(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a line for each case that llama.cpp has run too: tokens per second as a multiple of its."""
    speeds = {(row["engine"], row["batch"], row["context"]): row["tokens_per_second"] for row in rows}
    lines = []
    for batch, context in dict.fromkeys((row["batch"], row["context"]) for row in rows):
        ratios = []
        for bits, file_type in LLAMA_CPP_FORMATS.items():
            own_speed = speeds.get(("fledgling" if bits == 16 else f"fledgling int{bits}", batch, context))
            other_speed = speeds.get((f"llama.cpp {file_type}", batch, context))
            if own_speed and other_speed:
                ratios.append(f"{own_speed / other_speed:.2f} x {file_type}")
        if ratios:
            lines.append(f"{batch} x {context}, each further token, fledgling against llama.cpp: {', '.join(ratios)}")
    return lines


def make_random_model(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Transformer:
    """Returns a model with random weights only: a fresh model's zeros multiply faster and always give one token."""
    model = Transformer(config, dtype).to(device)
    model.initialize(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * config.width**-0.5)
    return model


def _random_prompts(config: ModelConfig, count: int, length: int) -> list[list[int]]:
    """Returns `count` prompts of `length` random token ids."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(config.vocab_size, (count, length), generator=generator).tolist()


def measure_stream_bandwidth(device: torch.device, size: int | None = None, seconds: float = 0.15) -> float:
    """Returns bytes per second: the best of several reads of `size` bytes, for about `seconds`.

    size: None is far more than any cache holds.
    """
    size = size or (STREAM_BYTES if device.type == "cpu" else 1 << 32)
    vector = torch.ones(max(1, size // 8), dtype=torch.int64, device=device)
    best, begin = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        if device.type != "cpu" or not native.read_memory(vector):
            vector.sum().item()
        best = min(best, time.perf_counter() - start)
    return vector.nbytes / best
