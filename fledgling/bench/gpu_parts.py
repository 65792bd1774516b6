"""Parts of the GPU check that run the product: tests, training steps, memory, decoding, rollouts, a small run.

`python -m fledgling.bench.gpu_parts PART DIR [tiny]` runs one part; `gpu.py` starts it and collects its results. The
kernels by themselves are in `gpu_kernels.py`.
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from fledgling.bench import gpu_kernels, gpu_runs
from fledgling.bench.backends import EngineBackend, TransformersBackend
from fledgling.bench.gpu import note, place
from fledgling.bench.gpu_kernels import profile_step, wait
from fledgling.bench.infer import NoSpecialTokens, make_random_model, measure_stream_bandwidth
from fledgling.bench.train import RandomBatches, with_model_size
from fledgling.config import ModelConfig, Recipe, load_recipe
from fledgling.infer.engine import Engine
from fledgling.model.build import build_model
from fledgling.model.head_chunk import CHUNK_LOGITS
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.optim.schedule import trapezoidal_schedule
from fledgling.plan import hardware, inference, measured_speed
from fledgling.plan.flops import training_flops_per_token
from fledgling.plan.memory import TrainingStep, memory_by_phase
from fledgling.runtime.device import measure_peak_flops, set_up_device, should_compile
from fledgling.runtime.world import World
from fledgling.train import loop
from fledgling.train.loss import next_token_loss
from fledgling.train.stage import Stage

WARMUP, STEPS = 3, 8
DEFAULT_CHUNK_LOGITS = dict(CHUNK_LOGITS)
# depth, entries, context, rows: the shapes whose memory is held against the plan's
SHAPES = (
    (4, 32768, 2048, 8),
    (8, 65536, 2048, 16),
    (12, 32768, 2048, 8),
    (12, 32768, 2048, 16),
    (12, 32768, 2048, 64),
    (12, 65536, 1024, 32),
    (16, 32768, 2048, 16),
    (16, 32768, 2048, 32),
    (20, 65536, 2048, 8),
    (20, 65536, 2048, 16),
    (20, 65536, 2048, 32),
    (26, 65536, 2048, 8),
)


def recipe_of(depth: int, vocab_size: int, context: int) -> Recipe:
    """The quickstart recipe with a model of this shape, on the device that is here."""
    return with_model_size(load_recipe("quickstart", [f"run.device={place().type}"]), depth, vocab_size, context)


def fill(model: Transformer) -> None:
    """Fill the weights with small random numbers on the device itself, which takes no time."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, model.config.width**-0.5)


def free() -> None:
    """Give back all memory that nothing uses, and forget what was compiled."""
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def planned_bytes(config: ModelConfig, rows: int, dtype: str, compiled: bool, documents: bool) -> tuple[int, str]:
    """Returns what the planner says a step holds at its peak, in bytes, and at which moment."""
    step = TrainingStep(rows, config.context, dtype, device=place().type, compiled=compiled, packed_documents=documents)
    held = memory_by_phase(config, step)
    moment = max(held, key=lambda name: held[name]["total"])
    return held[moment]["total"], moment


def steps_of(
    shape: tuple[int, int, int, int],
    compiled: bool = True,
    chunk: int | None = None,
    documents: bool = True,
    steps: int = STEPS,
    warmup: int = WARMUP,
    profile: Path | None = None,
) -> dict[str, Any]:
    """Run real training steps on random rows; returns speed, both MFUs, memory next to the plan's, and more.

    Args: shape: depth, entries, context, rows; chunk: tokens of a chunk of logits; documents: three a row, or no mask;
    profile: where to write the kernels of one step.
    """
    depth, vocab_size, context, rows = shape
    recipe = recipe_of(depth, vocab_size, context)
    world = World.start(recipe.run.device)
    setup = set_up_device(recipe.run, world)
    compiled = compiled and should_compile("auto", world.device)
    setup = type(setup)(setup.dtype, compiled, setup.peak_flops, setup.memory_limit)
    gpu_kernels.reset_kernels(compiled)
    CHUNK_LOGITS[world.device.type] = chunk * vocab_size if chunk else DEFAULT_CHUNK_LOGITS[world.device.type]
    free()
    model = build_model(recipe.model.resolve(vocab_size), setup, world.device)
    fill(model)
    optimizer = Optimizer(model, recipe.optimizer, world, 1.0, compiled, setup.dtype)
    stream = RandomBatches(vocab_size, rows, context)
    if not documents:
        stream.batch.document_ids = None
    stage = Stage("bench", steps, stream, next_token_loss, partial(trapezoidal_schedule, total_steps=steps))  # type: ignore[arg-type]
    first, began = 0.0, time.perf_counter()
    for number in range(warmup + steps):
        if number == warmup:
            wait()
            began = time.perf_counter()
        loss, norm = loop.train_step(stage, model, optimizer, stream.next(), world)
        if number == 0:
            wait()
            first = time.perf_counter() - began
    wait()  # once at the end: in training nothing waits between steps either
    step = (time.perf_counter() - began) / steps
    dtype = setup.dtype_name
    found: dict[str, Any] = {
        "shape": "/".join(map(str, shape)),
        "compiled": compiled,
        "tokens_per_second": rows * context / step,
        "step_ms": 1e3 * step,
        "first_step_seconds": first,
        "loss": loss,
        "norm": norm,
    }
    achieved = training_flops_per_token(model.config) * rows * context / step
    if world.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
        name = measured_speed.device_name("cuda", dtype, torch.cuda.get_device_name())
        found["mfu_datasheet"] = achieved / hardware.DEVICES[name].peak_flops if name else None
        plan, moment = planned_bytes(model.config, rows, dtype, compiled, documents)
        found |= {"peak_gb": peak / 1e9, "plan_gb": plan / 1e9, "plan_error": plan / peak - 1, "moment": moment}
        found["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
    found["mfu_measured"] = achieved / max(setup.peak_flops, measure_peak_flops(world.device, setup.dtype))
    if profile:
        found |= profile_step(lambda: loop.train_step(stage, model, optimizer, stream.next(), world), profile)
    return found


def noted(label: str, work: Callable[[], dict[str, Any]]) -> bool:
    """Note what `work` returns, or the error that it ends with; whether it came through."""
    try:
        found, fine = work(), True
    except Exception as problem:  # a shape that does not fit is a result
        traceback.print_exc(file=sys.stdout)  # goes to log.txt
        found, fine = {"error": f"{type(problem).__name__}: {' '.join(str(problem).split())[:240]}"}, False
    note(what=label, **found)
    free()
    return fine


# ---- the parts -----------------------------------------------------------------------------------


def tests(out: Path, tiny: bool) -> None:
    """Runs tests/gpu by pytest; notes each failure as it happens, so that a time limit loses none."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-v", "-p", "no:cacheprovider", "--tb=short"]
    command += ["-n", "0"] if find_spec("xdist") else []
    # The part `quickstart` stops and resumes a run.
    command += ["-o", "addopts=--strict-markers", "-k", "loss" if tiny else "not stopped"]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    passed, last = 0, ""
    for line in process.stdout or ():
        print(line, end="")
        last = line.strip() or last
        passed += " PASSED" in line
        if "::" in line and (" FAILED" in line or " ERROR" in line):
            note(failed=line.split()[0][-200:])
        elif line.startswith("E  ") or (" PASSED" in line and passed % 5 == 0):
            note(passed=passed, seconds=time.perf_counter() - began, line=line.strip()[-200:])
    note(pytest=last, code=process.wait())


def train_d12(out: Path, tiny: bool) -> None:
    """Training steps at depth 12, 16 rows: three documents a row, then rows of one document."""
    shape = (2, 512, 64, 2) if tiny else (12, 65536, 2048, 16)
    for label, documents in (("d12", True), ("d12, no documents", False)):
        profile = out / f"{label.replace(', ', '-').replace(' ', '-')}.txt"
        noted(label, lambda: steps_of(shape, documents=documents, profile=profile))  # noqa: B023


def train_d20(out: Path, tiny: bool) -> None:
    """Training steps at depth 20, with as many rows of 32 as fit: three documents a row, then rows of one document."""
    for label, documents in (("d20", True), ("d20, no documents", False)):
        profile = out / f"{label.replace(', ', '-').replace(' ', '-')}.txt"
        for rows in (2,) if tiny else (32, 16, 8):
            shape = (2, 512, 64, rows) if tiny else (20, 65536, 2048, rows)
            if noted(label, lambda: steps_of(shape, documents=documents, profile=profile)):  # noqa: B023
                break


def ab(out: Path, tiny: bool) -> None:
    """Steps with one thing changed: the chunk of the loss, documents, the compiler."""
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("chunk 4,096", {"chunk": 4096}),
        ("chunk 4,096, no documents", {"chunk": 4096, "documents": False}),
        ("chunk 16,384, no documents", {"chunk": 16384, "documents": False}),
        ("no documents", {"documents": False}),
        ("not compiled", {"compiled": False}),
        ("not compiled, chunk 4,096, no documents", {"compiled": False, "chunk": 4096, "documents": False}),
    ]
    shape = (2, 512, 64, 2) if tiny else (12, 65536, 2048, 16)
    for label, change in kinds[-2:] if tiny else kinds:
        noted(f"d12, {label}", lambda: steps_of(shape, **change))  # noqa: B023
    if not tiny:
        for rows in (32, 16):
            shape = (20, 65536, 2048, rows)
            how: dict[str, Any] = {
                "chunk": 4096,
                "documents": False,
                "profile": out / "d20-chunk-4096-no-documents.txt",
            }
            if noted("d20, chunk 4,096, no documents", lambda: steps_of(shape, **how)):  # noqa: B023
                return


def memory(out: Path, tiny: bool, compiled: bool = False) -> None:
    """The peak of real steps next to the plan's, shape by shape."""
    for shape in ((2, 512, 64, 2),) if tiny else SHAPES:
        noted("memory", lambda: steps_of(shape, compiled=compiled, steps=1, warmup=1))  # noqa: B023


def decode(out: Path, tiny: bool) -> None:
    """Tokens a second of the engine by rows, greedily, next to the least time that reading weights and cache takes."""
    device = place()
    bandwidth = measure_stream_bandwidth(device)
    note(bandwidth_gb_per_second=bandwidth / 1e9)
    requested = (16, 8) if tiny else (256, 64)  # tokens of a prompt, and of its answer
    for depth in (2,) if tiny else (20, 12):
        shape = (depth, 512, 64) if tiny else (depth, 65536, 2048)
        config = recipe_of(*shape).model.resolve(shape[1])
        decode_model(config, (1, 2) if tiny else (1, 8, 32, 256), () if depth == 20 else (1, 32), *requested, bandwidth)
        free()


def decode_model(
    config: ModelConfig, rows: Sequence[int], peer_rows: Sequence[int], prompt: int, tokens: int, bandwidth: float
) -> None:
    """Notes the speed of the engine with so many rows, and that of transformers with the same weights."""
    device = place()
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = make_random_model(config, dtype, device)
    computed = EngineBackend(Engine(model, NoSpecialTokens({}), device, dtype))  # type: ignore[arg-type]
    for count in rows:
        noted(f"d{config.depth}, {count} rows", lambda: decoded(config, computed, count, prompt, tokens, bandwidth))  # noqa: B023
    reference: list[TransformersBackend] = []

    def peer() -> dict[str, Any]:
        reference.append(TransformersBackend(model, dtype, device))
        return {"made": True}

    if peer_rows and noted(f"d{config.depth}, transformers", peer):
        for count in peer_rows:
            label = f"d{config.depth}, {count} rows, transformers"
            noted(label, lambda: decoded(config, reference[0], count, prompt, tokens, bandwidth))  # noqa: B023


def decoded(config: ModelConfig, backend: Any, rows: int, prompt: int, tokens: int, bandwidth: float) -> dict[str, Any]:
    """Times one speaker with so many rows, after one turn that is not counted."""
    draw = torch.Generator().manual_seed(2)
    prompts = torch.randint(config.vocab_size, (rows, prompt), generator=draw).tolist()
    backend.generate(prompts, 4)
    wait()
    times = backend.generate(prompts, tokens)
    step = statistics.median(times[1:])
    read = backend.weight_bytes_read + inference.kv_cache_bytes(config, rows, prompt + tokens // 2)
    return {
        "tokens_per_second": rows / step,
        "step_ms": 1e3 * step,
        "first_ms": 1e3 * times[0],
        "floor_ms": 1e3 * read / bandwidth,
        "share_of_bandwidth": read / step / bandwidth,
    }


def main(part: str, out: str, tiny: str = "") -> None:
    """Run one part."""
    small = tiny == "tiny"
    if part in ("card", "attention", "head", "muon"):
        getattr(gpu_kernels, part)(small)
    elif part == "memory_compiled":
        memory(Path(out), small, compiled=True)
    else:
        own = (tests, train_d12, train_d20, ab, memory, decode, gpu_runs.rollouts, gpu_runs.quickstart)
        {function.__name__: function for function in own}[part](Path(out), small)


if __name__ == "__main__":
    main(*sys.argv[1:])
