"""How fast the engine answers: time to the first token and tokens per second, beside what the machine could do.

The one idea: reading a prompt is bound by arithmetic, and each further token by memory, for it must read every
weight and every cached key and value once. Both limits are measured in the same run, a matrix product and a
streaming read, and each figure stands as a share of them. The engine answers with the model as it is and quantized;
beside it, in turn and with the same weights, `transformers.generate`, and llama.cpp for models of the llama family.

What it is not: quality. Weights are random, so the answers mean nothing; tokens are drawn greedily.

B rows, T tokens of a prompt.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fledgling.bench.backends import LLAMA_CPP_FORMATS, Backend, EngineBackend, LlamaCppBackend, TransformersBackend
from fledgling.config import ModelConfig, Recipe, UserError
from fledgling.infer.engine import Engine
from fledgling.kernels.format import DEFAULT_GROUP_SIZES
from fledgling.kernels.quantized_model import load_quantized_model, quantize_state_dict
from fledgling.model.cache import CacheRow
from fledgling.model.transformer import Transformer
from fledgling.plan import inference
from fledgling.plan.flops import forward_flops_per_token
from fledgling.runtime.device import measure_peak_flops, set_up_device
from fledgling.runtime.world import World

STREAM_BYTES = 1 << 28  # bytes of the streaming read: far more than any processor's cache


@dataclass(frozen=True)
class InferenceCase:
    """So many different prompts at once, of so many tokens each."""

    batch: int
    context: int


@dataclass(frozen=True)
class NoSpecialTokens:
    """In the tokenizer's place: no special tokens, so that no answer ends early."""

    special_tokens: dict[str, int]
    bos_or_none: int | None = None


def measure_inference(
    recipe: Recipe,
    batches: Sequence[int] = (1, 8, 32),
    contexts: Sequence[int] = (256, 1024),
    tokens: int = 32,
    repeats: int = 3,
    peers: bool = True,
    bits: Sequence[int] = (16, 8, 4),
) -> dict[str, Any]:
    """Time every batch with the first of `contexts`, and every context with one row; see `table` for the result.

    tokens: drawn for each row; repeats: of everything, in turn; the figures are medians over all steps, and least.
    bits: 16 stands for the dtype of the run; 8 and 4 are quantized. Raises UserError for numbers below 1, for contexts
    that leave no room for an answer, and for other bits.
    """
    cases = _make_cases(batches, contexts, tokens, repeats, recipe.model.context)
    if not bits or set(bits) - {16, 8, 4}:
        raise UserError(f"bits: got {' '.join(map(str, bits)) or 'nothing'}, expected some of 16, 8 and 4")
    world = World.start(recipe.run.device)
    device, setup = world.device, set_up_device(recipe.run, world)
    config = recipe.resolve_model()
    model = make_random_model(config, setup.dtype, device)
    room = max(contexts) + tokens + 1
    with TemporaryDirectory() as folder:
        speakers = _make_backends(model, setup.dtype, device, bits, peers, Path(folder), room)
    prompts = _random_prompts(config, max(case.batch for case in cases), max(case.context for case in cases))
    bandwidth = measure_stream_bandwidth(device)
    pairs = [(case, name) for case in cases for name in speakers if case.batch <= speakers[name].max_batch_size]
    times: dict[tuple[InferenceCase, str], list[list[float]]] = {pair: [] for pair in pairs}
    for repeat in range(repeats):
        for case, name in times:
            doing = f"{name}, batch {case.batch}, context {case.context}"
            print(f"\r{repeat + 1}/{repeats} {doing:<50}", end="", file=sys.stderr, flush=True)
            asked = [prompt[: case.context] for prompt in prompts[: case.batch]]
            times[case, name].append(speakers[name].generate(asked, tokens))
        bandwidth = max(bandwidth, measure_stream_bandwidth(device))
    print(file=sys.stderr)
    peak = max(setup.peak_flops, measure_peak_flops(device, setup.dtype))
    dtype = str(setup.dtype).removeprefix("torch.")
    return {
        "parameters": model.count_parameters(),
        "dtype": dtype,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "limits": {"bytes_per_second": bandwidth, "flops": peak},
        "rows": [
            {"engine": name, **asdict(case), **_result_row(config, case, dtype, speakers[name], kept, bandwidth, peak)}
            for (case, name), kept in times.items()
        ],
        "logits_differ": _logits_difference(speakers, prompts[0][: contexts[0]]),
    }


def _make_backends(
    model: Transformer,
    dtype: torch.dtype,
    device: torch.device,
    bits: Sequence[int],
    peers: bool,
    folder: Path,
    room: int,
) -> dict[str, Backend]:
    """Everyone who can answer here, by name."""
    config, found = model.config, {}
    for width in bits:
        if width == 16:
            found["fledgling"] = EngineBackend(Engine(model, NoSpecialTokens({})))  # type: ignore[arg-type]
            continue
        packed = quantize_state_dict(config, model.state_dict(), width, DEFAULT_GROUP_SIZES[width])
        quantized = load_quantized_model(config, packed, {"bits": width}, device, dtype)
        found[f"fledgling int{width}"] = EngineBackend(Engine(quantized, NoSpecialTokens({})))  # type: ignore[arg-type]
    if peers and find_spec("transformers"):
        found["transformers"] = TransformersBackend(model, dtype, device)
    if peers and find_spec("llama_cpp") and find_spec("gguf") and device.type == "cpu" and config.family == "llama":
        found |= {
            f"llama.cpp {LLAMA_CPP_FORMATS[width]}": LlamaCppBackend(model, width, folder, room) for width in bits
        }
    return found


def _make_cases(
    batches: Sequence[int], contexts: Sequence[int], tokens: int, repeats: int, room: int
) -> list[InferenceCase]:
    for name, given in (("batch", batches), ("context", contexts), ("tokens", [tokens]), ("repeats", [repeats])):
        if not given or min(given) < 1:
            raise UserError(f"{name}: got {' '.join(map(str, given)) or 'nothing'}, expected at least 1")
    if tokens < 2:
        raise UserError(f"tokens: got {tokens}, expected at least 2: the first comes with the prompt")
    if max(contexts) + tokens + 1 > room:
        raise UserError(f"context: got {max(contexts)} and {tokens} tokens, but the model's context is {room}")
    return [
        *(InferenceCase(batch, contexts[0]) for batch in batches),
        *(InferenceCase(1, context) for context in contexts[1:]),
    ]


def _result_row(
    config: ModelConfig,
    case: InferenceCase,
    dtype: str,
    speaker: Backend,
    kept: list[list[float]],
    bandwidth: float,
    peak: float,
) -> dict[str, float]:
    """What one engine did with one case, as medians, as the least, and as shares of the limits."""
    first = statistics.median(times[0] for times in kept)
    steps = [second for times in kept for second in times[1:]]
    step, length = statistics.median(steps), case.context + len(kept[0]) / 2  # tokens that a row attends to, on average
    costs = inference.decode_cost(config, round(length), dtype, case.batch)
    read = speaker.weight_bytes_read + inference.kv_cache_bytes(config, case.batch, round(length), dtype)
    prompt = case.batch * case.context * forward_flops_per_token(config, case.context)
    return {
        "time_to_first_token": first,
        "prefill_tokens_per_second": case.batch * case.context / first,
        "prefill_share_of_flops": prompt / first / peak,
        "tokens_per_second": case.batch / step,
        "tokens_per_second_best": case.batch / min(steps),
        "bytes_per_step": read,
        "share_of_bandwidth": read / step / bandwidth,
        "share_of_bandwidth_best": read / min(steps) / bandwidth,
        "share_of_flops": case.batch * costs["flops_per_token"] / step / peak,
    }


def _logits_difference(speakers: dict[str, Backend], prompt: list[int]) -> float | None:
    """Largest difference of our logits and transformers' after a prompt, in standard deviations of the logits."""
    ours, theirs = speakers.get("fledgling"), speakers.get("transformers")
    if not isinstance(ours, EngineBackend) or not isinstance(theirs, TransformersBackend):
        return None
    with torch.inference_mode():
        engine = ours.engine
        hidden = engine.extend_cache(engine.new_cache(), [CacheRow()], [prompt])
        found, other = engine.compute_logits(hidden[0, -1]).float(), theirs.logits(prompt)
    return float((found - other).abs().max() / other.std())


def inference_table(result: dict[str, Any]) -> str:
    """The result of `measure` as lines for people: medians, the best in brackets."""
    limits = result["limits"]
    lines = [
        f"{result['parameters']:,} parameters, {result['dtype']}, {result['device']}, {result['threads']} threads; "
        f"reads {limits['bytes_per_second'] / 1e9:.1f} GB/s, multiplies {limits['flops'] / 1e9:,.0f} GFLOP/s",
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
    if result["logits_differ"] is not None:
        lines.append(f"logits after a prompt differ by at most {result['logits_differ']:.2g} standard deviations")
    return "\n".join(lines)


def make_random_model(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Transformer:
    """A model all of whose weights are random: a fresh one's zeros would multiply quicker and answer one token."""
    model = Transformer(config, dtype).to(device)
    model.initialize(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * config.width**-0.5)
    return model


def _random_prompts(config: ModelConfig, count: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(config.vocab_size, (count, length), generator=generator).tolist()


def measure_stream_bandwidth(device: torch.device, seconds: float = 0.3) -> float:
    """Bytes per second of the best of several sums over a vector that no cache holds."""
    size = STREAM_BYTES if device.type == "cpu" else 1 << 32
    vector = torch.ones(size // 4, device=device)
    best, began = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        vector.sum().item()
        best = min(best, time.perf_counter() - start)
    return size / best
