"""Parts of the GPU check that run tests, training steps and decoding, and compare memory with the plan.

`python -m fledgling.bench.gpu_parts PART DIR [tiny]` runs one part; `gpu.py` starts it and collects its results. The
single kernels are in `gpu_kernels.py`, whole stages in `gpu_runs.py`.
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from fledgling.bench import gpu_kernels, gpu_runs
from fledgling.bench.backends import EngineBackend, TransformersBackend
from fledgling.bench.gpu import get_device, report_attempt, report_result
from fledgling.bench.gpu_kernels import profile_step, synchronize_device, time_steps
from fledgling.bench.infer import NoSpecialTokens, make_random_model, measure_stream_bandwidth
from fledgling.bench.sized_recipe import PLAIN, with_model_size
from fledgling.bench.train import measure_peak_above
from fledgling.config import ModelConfig, Recipe, load_recipe
from fledgling.infer.engine import Engine
from fledgling.infer.runner import DeviceDecode
from fledgling.model.build import build_model
from fledgling.model.head_chunk import CHUNK_LOGITS
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.optim.schedule import trapezoidal_schedule
from fledgling.plan import inference
from fledgling.plan.flops import training_flops_per_token
from fledgling.plan.memory import memory_by_phase
from fledgling.plan.training_step import TrainingStep
from fledgling.runtime.device import choose_dtype, set_up_device, should_compile
from fledgling.runtime.world import World
from fledgling.train import loop
from fledgling.train.loss import next_token_loss
from fledgling.train.peak import find_datasheet_peak
from fledgling.train.random_batches import RandomBatches
from fledgling.train.stage import Stage

WARMUP, STEPS = 3, 8
DEFAULT_CHUNK_LOGITS = dict(CHUNK_LOGITS)
# depth, vocabulary, context, rows: shapes whose memory is compared with the plan
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


def recipe_for_shape(depth: int, vocab_size: int, context: int) -> Recipe:
    """Returns the quickstart recipe with a model of this shape, for the measured device."""
    recipe = load_recipe("quickstart", [*PLAIN, f"run.device={get_device().type}"])
    return with_model_size(recipe, depth, vocab_size, context)


def randomize_weights_(model: Transformer) -> None:
    """Fills the weights with small random numbers on the device, which is faster than `initialize` on the CPU."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, model.config.width**-0.5)


def free_memory() -> None:
    """Frees unused memory, and resets the compiler and the peak-memory counter."""
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def plan_peak_bytes(
    config: ModelConfig, rows: int, dtype: str, compiled: bool, documents: bool, recompute: bool = False
) -> tuple[int, str]:
    """Returns the planned peak memory of a step in bytes, and the moment of the peak.

    Args:
        rows: of one micro-batch, each of the model's context.
        dtype: of the products.
        compiled: whether blocks are compiled.
        documents: whether rows hold several documents.
        recompute: whether blocks keep only their inputs for backward.
    """
    step = TrainingStep(
        rows,
        config.context,
        dtype,
        device=get_device().type,
        compiled=compiled,
        packed_documents=documents,
        recompute=recompute,
    )
    phases = memory_by_phase(config, step)
    moment = max(phases, key=lambda name: phases[name]["total"])
    return phases[moment]["total"], moment


def measure_steps(
    shape: tuple[int, int, int, int],
    compiled: bool = True,
    chunk: int | None = None,
    documents: bool = True,
    fp8: bool = False,
    recompute: bool = False,
    steps: int = STEPS,
    warmup: int = WARMUP,
    profile: Path | None = None,
) -> dict[str, Any]:
    """Runs training steps on random rows, and returns their speed, MFU and memory, with the planned memory.

    Args:
        shape: depth, vocabulary size, context, rows.
        compiled: compile the model where the device can.
        chunk: tokens in a chunk of logits; None is the default.
        documents: three documents in each row, else one without a mask.
        fp8, recompute: as in [run].
        steps: timed steps, after `warmup` steps that are not timed.
        profile: file for the longest kernels of one more step.
    """
    depth, vocab_size, context, rows = shape
    recipe = recipe_for_shape(depth, vocab_size, context)
    world = World.start(recipe.run.device)
    setup = set_up_device(recipe.run, world)
    compiled = compiled and should_compile("auto", world.device)
    setup = type(setup)(setup.dtype, compiled, setup.peak_flops, setup.memory_limit, fp8)
    if compiled:
        torch._dynamo.reset()  # each size of a chunk is compiled separately
    CHUNK_LOGITS[world.device.type] = chunk * vocab_size if chunk else DEFAULT_CHUNK_LOGITS[world.device.type]
    free_memory()
    model = build_model(recipe.model.resolve(vocab_size), setup, world.device)
    randomize_weights_(model)
    model.recompute = recompute
    optimizer = Optimizer(model, recipe.optimizer, world, 1.0, compiled, setup.dtype)
    stream = RandomBatches(vocab_size, rows, context)
    if not documents:
        stream.batch.document_ids = None
    stage = Stage("bench", steps, stream, next_token_loss, partial(trapezoidal_schedule, total_steps=steps))  # type: ignore[arg-type]
    first, step, last = time_steps(
        lambda: loop.queue_step(stage, model, optimizer, stream.next(), world), steps, warmup
    )
    dtype = setup.dtype_name
    result: dict[str, Any] = {
        "shape": "/".join(map(str, shape)),
        "compiled": compiled,
        "tokens_per_second": rows * context / step,
        "step_ms": 1e3 * step,
        "first_step_seconds": first,
        "loss": last.loss,
        "norm": last.norm,
    }
    achieved = training_flops_per_token(model.config) * rows * context / step
    if world.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
        datasheet = find_datasheet_peak(setup, world.device)
        result["mfu_datasheet"] = achieved / datasheet if datasheet else None
        plan, moment = plan_peak_bytes(model.config, rows, dtype, compiled, documents, recompute)
        result |= {"peak_gb": peak / 1e9, "plan_gb": plan / 1e9, "plan_error": plan / peak - 1, "moment": moment}
        result["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
    measured_peak, problem = measure_peak_above(setup, world.device, achieved)
    result["mfu_measured"] = measured_peak and achieved / measured_peak
    result |= {"peak_problem": problem} if problem else {}
    if profile:
        result |= profile_step(lambda: loop.train_step(stage, model, optimizer, stream.next(), world), profile)
    return result


def report_and_free(label: str, measure: Callable[[], dict[str, Any]]) -> bool:
    """Reports what `measure` returns, or its error, then frees memory. Returns whether it succeeded."""
    succeeded = report_attempt(label, measure)
    free_memory()
    return succeeded


# ---- the parts -----------------------------------------------------------------------------------


def run_gpu_tests(out: Path, tiny: bool) -> None:
    """Runs tests/gpu with pytest, and reports each failure at once, so that a time limit loses none."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-v", "-p", "no:cacheprovider", "--tb=short"]
    command += ["-n", "0"] if find_spec("xdist") else []
    # The part `quickstart` stops and resumes a run.
    command += ["-o", "addopts=--strict-markers", "-k", "loss" if tiny else "not stopped"]
    start_time = time.perf_counter()
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    passed, last = 0, ""
    for line in process.stdout or ():
        print(line, end="")
        last = line.strip() or last
        passed += " PASSED" in line
        if "::" in line and (" FAILED" in line or " ERROR" in line):
            report_result(failed=line.split()[0][-200:])
        elif line.startswith("E  ") or (" PASSED" in line and passed % 5 == 0):
            report_result(passed=passed, seconds=time.perf_counter() - start_time, line=line.strip()[-200:])
    report_result(pytest=last, code=process.wait())


def measure_d12(out: Path, tiny: bool) -> None:
    """Measures training steps at depth 12 with 16 rows: three documents in each row, then one."""
    shape = (2, 512, 64, 2) if tiny else (12, 65536, 2048, 16)
    for label, documents in (("d12", True), ("d12, no documents", False)):
        profile = out / f"{label.replace(', ', '-').replace(' ', '-')}.txt"
        report_and_free(label, partial(measure_steps, shape, documents=documents, profile=profile))


def measure_d20(out: Path, tiny: bool) -> None:
    """Measures training steps at depth 20 with 32, 16 or 8 rows, as fits: three documents in each row, then one."""
    for label, documents in (("d20", True), ("d20, no documents", False)):
        profile = out / f"{label.replace(', ', '-').replace(' ', '-')}.txt"
        for rows in (2,) if tiny else (32, 16, 8):
            shape = (2, 512, 64, rows) if tiny else (20, 65536, 2048, rows)
            if report_and_free(label, partial(measure_steps, shape, documents=documents, profile=profile)):
                break


def compare_settings(out: Path, tiny: bool) -> None:
    """Measures steps with changed settings: tokens in a chunk of logits, documents, fp8, recomputation, compilation."""
    variants: list[tuple[str, dict[str, Any]]] = [
        ("chunk 4,096", {"chunk": 4096}),
        ("chunk 4,096, no documents", {"chunk": 4096, "documents": False}),
        ("chunk 16,384, no documents", {"chunk": 16384, "documents": False}),
        ("no documents", {"documents": False}),
        ("fp8", {"fp8": True}),
        ("blocks recompute", {"recompute": True}),
        ("not compiled", {"compiled": False}),
        ("not compiled, chunk 4,096, no documents", {"compiled": False, "chunk": 4096, "documents": False}),
    ]
    shape = (2, 512, 64, 2) if tiny else (12, 65536, 2048, 16)
    for label, change in variants[-2:] if tiny else variants:
        report_and_free(f"d12, {label}", partial(measure_steps, shape, **change))
    if not tiny:
        for rows in (32, 16):
            shape = (20, 65536, 2048, rows)
            settings: dict[str, Any] = {
                "chunk": 4096,
                "documents": False,
                "profile": out / "d20-chunk-4096-no-documents.txt",
            }
            if report_and_free("d20, chunk 4,096, no documents", partial(measure_steps, shape, **settings)):
                return


def compare_memory(out: Path, tiny: bool, compiled: bool = False) -> None:
    """Measures the peak memory of one step of each shape, next to the planned peak."""
    for shape in ((2, 512, 64, 2),) if tiny else SHAPES:
        report_and_free("memory", partial(measure_steps, shape, compiled=compiled, steps=1, warmup=1))


def measure_decoding(out: Path, tiny: bool) -> None:
    """Measures greedy decoding for several numbers of rows, next to the time to read weights and cache once."""
    device = get_device()
    bandwidth = measure_stream_bandwidth(device)
    report_result(bandwidth_gb_per_second=bandwidth / 1e9)
    requested = (16, 8) if tiny else (256, 64)  # tokens of a prompt, and of its answer
    for depth in (2,) if tiny else (20, 12):
        shape = (depth, 512, 64) if tiny else (depth, 65536, 2048)
        config = recipe_for_shape(*shape).model.resolve(shape[1])
        measure_model_decoding(
            config, (1, 2) if tiny else (1, 8, 32, 256), () if depth == 20 else (1, 32), *requested, bandwidth
        )
        free_memory()


def measure_model_decoding(
    config: ModelConfig, rows: Sequence[int], peer_rows: Sequence[int], prompt: int, tokens: int, bandwidth: float
) -> None:
    """Reports decoding speed: the engine for each number in `rows`, transformers for each in `peer_rows`.

    The engine that reads each token at once is measured too, for the fewest and the most rows.

    Args:
        config: of the model.
        rows: decoded at once, in turn.
        peer_rows: likewise, of transformers.
        prompt: tokens of a prompt.
        tokens: of an answer.
        bandwidth: of the device's memory, in bytes per second.
    """
    device = get_device()
    dtype = torch.float32 if device.type == "cpu" else choose_dtype(device)
    model = make_random_model(config, dtype, device)
    variants: tuple[tuple[str, DeviceDecode, Sequence[int]], ...] = (
        ("", "on" if device.type == "cpu" else "auto", rows),
        (", read at once", "off", (rows[0], rows[-1])),
    )
    for name, device_decode, counts in variants:
        engine = Engine(model, NoSpecialTokens({}), device, dtype, device_decode=device_decode)  # type: ignore[arg-type]
        backend = EngineBackend(engine)
        for count in counts:
            measure = partial(time_decoding, config, backend, count, prompt, tokens, bandwidth)
            report_and_free(f"d{config.depth}, {count} rows{name}", measure)
    loaded: list[TransformersBackend] = []

    def load_transformers() -> dict[str, Any]:
        loaded.append(TransformersBackend(model, dtype, device))
        return {"loaded": True}

    if peer_rows and report_and_free(f"d{config.depth}, transformers", load_transformers):
        for count in peer_rows:
            label = f"d{config.depth}, {count} rows, transformers"
            report_and_free(label, partial(time_decoding, config, loaded[0], count, prompt, tokens, bandwidth))


def time_decoding(
    config: ModelConfig, backend: Any, rows: int, prompt: int, tokens: int, bandwidth: float
) -> dict[str, Any]:
    """Returns the decoding speed of a backend with this many rows, after a call that is not timed.

    Args:
        config: of the backend's model.
        rows: decoded at once.
        prompt: tokens of each row's prompt, drawn at random.
        tokens: generated for each row.
        bandwidth: of the device's memory, measured, in bytes per second.
    """
    generator = torch.Generator().manual_seed(2)
    prompts = torch.randint(config.vocab_size, (rows, prompt), generator=generator).tolist()
    backend.generate(prompts, 4)
    synchronize_device()
    times = backend.generate(prompts, tokens)
    step = statistics.median(times[1:])
    path = {"path": backend.decode_path} if isinstance(backend, EngineBackend) else {}
    read = backend.weight_bytes_read + inference.kv_cache_bytes(config, rows, prompt + tokens // 2)
    return {
        "tokens_per_second": rows / step,
        "step_ms": 1e3 * step,
        "first_ms": 1e3 * times[0],
        "floor_ms": 1e3 * read / bandwidth,
        "floor_tokens_per_second": rows * bandwidth / read,
        "share_of_floor": read / step / bandwidth,
        **path,
    }


KERNEL_PARTS: dict[str, Callable[[bool], None]] = {
    "peaks": gpu_kernels.measure_peaks,
    "attention": gpu_kernels.measure_attention,
    "head": gpu_kernels.measure_head,
    "muon": gpu_kernels.measure_muon,
}
RUN_PARTS: dict[str, Callable[[Path, bool], None]] = {
    "tests": run_gpu_tests,
    "train_d12": measure_d12,
    "train_d20": measure_d20,
    "ab": compare_settings,
    "memory": compare_memory,
    "memory_compiled": partial(compare_memory, compiled=True),
    "decode": measure_decoding,
    "rollouts": gpu_runs.run_rollouts,
    "quickstart": gpu_runs.run_quickstart,
}


def main(part: str, out: str, tiny: str = "") -> None:
    """Runs one part with results in directory `out`; tiny: "tiny" for small shapes."""
    small = tiny == "tiny"
    if part in KERNEL_PARTS:
        KERNEL_PARTS[part](small)
    else:
        RUN_PARTS[part](Path(out), small)


if __name__ == "__main__":
    main(*sys.argv[1:])
