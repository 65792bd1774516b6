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

from fledgling.bench.speakers import LLAMA_CPP, LlamaCpp, Ours, Speaker, Theirs
from fledgling.config import Recipe, UserError
from fledgling.infer.engine import Engine
from fledgling.kernels.format import GROUPS
from fledgling.kernels.model import pack_state, unpack_model
from fledgling.model.cache import Row
from fledgling.model.config import ModelConfig, from_table
from fledgling.model.transformer import Transformer
from fledgling.plan import inference
from fledgling.plan.flops import per_token_forward
from fledgling.runtime.world import World
from fledgling.train.setup import measure_peak, set_up

STREAM = 1 << 28  # bytes of the streaming read: far more than any processor's cache


@dataclass(frozen=True)
class Case:
    """So many different prompts at once, of so many tokens each."""

    batch: int
    context: int


@dataclass(frozen=True)
class Silent:
    """In the tokenizer's place: no special tokens, so that no answer ends early."""

    special: dict[str, int]
    start: int | None = None


def measure(
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
    cases = _cases(batches, contexts, tokens, repeats, recipe.model.context)
    if not bits or set(bits) - {16, 8, 4}:
        raise UserError(f"bits: got {' '.join(map(str, bits)) or 'nothing'}, expected some of 16, 8 and 4")
    world = World.start(recipe.run.device)
    device, setup = world.device, set_up(recipe.run, world)
    config = from_table(recipe.model, recipe.tokenizer.vocab_size)
    model = random_model(config, setup.dtype, device)
    room = max(contexts) + tokens + 1
    with TemporaryDirectory() as folder:
        speakers = _speakers(model, setup.dtype, device, bits, peers, Path(folder), room)
    prompts = _prompts(config, max(case.batch for case in cases), max(case.context for case in cases))
    bandwidth = stream_bandwidth(device)
    pairs = [(case, name) for case in cases for name in speakers if case.batch <= speakers[name].rows]
    times: dict[tuple[Case, str], list[list[float]]] = {pair: [] for pair in pairs}
    for repeat in range(repeats):
        for case, name in times:
            doing = f"{name}, batch {case.batch}, context {case.context}"
            print(f"\r{repeat + 1}/{repeats} {doing:<50}", end="", file=sys.stderr, flush=True)
            asked = [prompt[: case.context] for prompt in prompts[: case.batch]]
            times[case, name].append(speakers[name].answer(asked, tokens))
        bandwidth = max(bandwidth, stream_bandwidth(device))
    print(file=sys.stderr)
    peak = max(setup.peak_flops, measure_peak(device, setup.dtype))
    dtype = str(setup.dtype).removeprefix("torch.")
    return {
        "parameters": model.parameter_count(),
        "dtype": dtype,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "limits": {"bytes_per_second": bandwidth, "flops": peak},
        "rows": [
            {"engine": name, **asdict(case), **_row(config, case, dtype, speakers[name], kept, bandwidth, peak)}
            for (case, name), kept in times.items()
        ],
        "logits_differ": _difference(speakers, prompts[0][: contexts[0]]),
    }


def _speakers(
    model: Transformer,
    dtype: torch.dtype,
    device: torch.device,
    bits: Sequence[int],
    peers: bool,
    folder: Path,
    room: int,
) -> dict[str, Speaker]:
    """Everyone who can answer here, by name."""
    config, found = model.config, {}
    for width in bits:
        if width == 16:
            found["fledgling"] = Ours(Engine(model, Silent({})))  # type: ignore[arg-type]
            continue
        packed = pack_state(config, model.state_dict(), width, GROUPS[width])
        quantized = unpack_model(config, packed, {"bits": width}, device, dtype)
        found[f"fledgling int{width}"] = Ours(Engine(quantized, Silent({})))  # type: ignore[arg-type]
    if peers and find_spec("transformers"):
        found["transformers"] = Theirs(model, dtype, device)
    if peers and find_spec("llama_cpp") and find_spec("gguf") and device.type == "cpu" and config.family == "llama":
        found |= {f"llama.cpp {LLAMA_CPP[width]}": LlamaCpp(model, width, folder, room) for width in bits}
    return found


def _cases(batches: Sequence[int], contexts: Sequence[int], tokens: int, repeats: int, room: int) -> list[Case]:
    for name, given in (("batch", batches), ("context", contexts), ("tokens", [tokens]), ("repeats", [repeats])):
        if not given or min(given) < 1:
            raise UserError(f"{name}: got {' '.join(map(str, given)) or 'nothing'}, expected at least 1")
    if tokens < 2:
        raise UserError(f"tokens: got {tokens}, expected at least 2: the first comes with the prompt")
    if max(contexts) + tokens + 1 > room:
        raise UserError(f"context: got {max(contexts)} and {tokens} tokens, but the model's context is {room}")
    return [*(Case(batch, contexts[0]) for batch in batches), *(Case(1, context) for context in contexts[1:])]


def _row(
    config: ModelConfig,
    case: Case,
    dtype: str,
    speaker: Speaker,
    kept: list[list[float]],
    bandwidth: float,
    peak: float,
) -> dict[str, float]:
    """What one engine did with one case, as medians, as the least, and as shares of the limits."""
    first = statistics.median(times[0] for times in kept)
    steps = [second for times in kept for second in times[1:]]
    step, length = statistics.median(steps), case.context + len(kept[0]) / 2  # tokens that a row attends to, on average
    costs = inference.decode(config, round(length), dtype, case.batch)
    read = speaker.weights_read + inference.cache(config, case.batch, round(length), dtype)
    prompt = case.batch * case.context * per_token_forward(config, case.context)
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


def _difference(speakers: dict[str, Speaker], prompt: list[int]) -> float | None:
    """Largest difference of our logits and transformers' after a prompt, in standard deviations of the logits."""
    ours, theirs = speakers.get("fledgling"), speakers.get("transformers")
    if not isinstance(ours, Ours) or not isinstance(theirs, Theirs):
        return None
    with torch.inference_mode():
        engine = ours.engine
        hidden = engine.extend(engine.new_cache(), [Row()], [prompt])
        found, other = engine.logits(hidden[0, -1]).float(), theirs.logits(prompt)
    return float((found - other).abs().max() / other.std())


def table(result: dict[str, Any]) -> str:
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


def random_model(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Transformer:
    """A model all of whose weights are random: a fresh one's zeros would multiply quicker and answer one token."""
    model = Transformer(config, dtype).to(device)
    model.initialize(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * config.width**-0.5)
    return model


def _prompts(config: ModelConfig, count: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(config.vocab_size, (count, length), generator=generator).tolist()


def stream_bandwidth(device: torch.device, seconds: float = 0.3) -> float:
    """Bytes per second of the best of several sums over a vector that no cache holds."""
    size = STREAM if device.type == "cpu" else 1 << 32
    vector = torch.ones(size // 4, device=device)
    best, began = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        vector.sum().item()
        best = min(best, time.perf_counter() - start)
    return size / best
