"""Compares the planner's memory estimate with the allocator's peak over a grid of shapes.

The measured steps are those of training: `train.loop.train_step` with its optimizer, from the model's first tensor on,
with every byte that the CPU's allocator returns. Ranks are separate processes, started by the launcher of `--gpus`; the
largest peak of several ranks counts. The memory of the process itself is not included.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fledgling.config import AdapterConfig, DistillConfig, ModelConfig, OptimizerConfig, UserError
from fledgling.kernels.frozen_weights import quantize_blocks
from fledgling.kernels.qat import fake_quantize
from fledgling.model.adapter import attach_adapter, initialize_adapter
from fledgling.model.build import build_model
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.plan.memory import memory_by_phase
from fledgling.plan.teacher import LIVE, STORED, PlannedTeacher
from fledgling.plan.training_step import TrainingStep
from fledgling.runtime.device import DTYPES, DeviceSetup
from fledgling.runtime.device_memory import count_live_tensor_bytes, measure_peak_memory
from fledgling.runtime.world import PendingCollective, World, leave_process_group
from fledgling.train import loop
from fledgling.train.distill.divergence import choose_divergences
from fledgling.train.distill.loss import distillation_loss
from fledgling.train.distill.teacher import compile_teacher, hold_matrices
from fledgling.train.loss import next_token_loss
from fledgling.train.random_batches import RandomBatches, add_predictions
from fledgling.train.saver import copy_tensors
from fledgling.train.stage import Stage

TOP_K = 16  # stored tokens of a teacher
STEPS = 2  # in the second step the state of the first exists


@dataclass(frozen=True)
class Case:
    """One shape of the grid; logits: "chunked" as trained, or "whole" where one chunk holds all rows."""

    depth: int
    width: int
    rows: int
    context: int
    vocab_size: int
    family: str = "fledgling"
    heads: int = 2
    kv_heads: int = 2
    dtype: str = "float32"
    micro_batches: int = 1
    documents: bool = True
    compiled: bool = False
    ranks: int = 1
    zero: int = 1
    deterministic: str = "auto"
    saving: bool = False
    adapter: str = "none"  # a method, with rank 8 on all matrices
    recompute: bool = False
    quantization: str = "none"
    teacher: str = "none"  # its role: live or stored; it has twice the width
    rounded: bool = False  # weights in training, to 8 bits
    state: str = "float32"  # of the optimizer
    preset: str = "nanochat-2025"

    @property
    def planned_teacher(self) -> PlannedTeacher | None:
        """Returns the teacher."""
        if self.teacher == "none":
            return None
        config = replace(self.config, width=2 * self.width, intermediate_size=2 * self.config.intermediate_size)
        return PlannedTeacher(config, self.teacher, TOP_K if self.teacher == STORED else 0)

    @property
    def config(self) -> ModelConfig:
        """Returns the model configuration."""
        return ModelConfig(
            family=self.family,
            vocab_size=self.vocab_size,
            depth=self.depth,
            width=self.width,
            heads=self.heads,
            kv_heads=self.kv_heads,
            context=self.context,
            preset=self.preset,
        )

    @property
    def step(self) -> TrainingStep:
        """Returns the planner's description of the step."""
        return TrainingStep(
            self.rows,
            self.context,
            self.dtype,
            self.micro_batches,
            self.ranks,
            self.zero,
            "cpu",
            self.compiled,
            None if self.deterministic == "auto" else self.deterministic == "on",
            self.documents,
            saves_checkpoints=self.saving,
            adapter=None
            if self.adapter == "none"
            else AdapterConfig(self.adapter, rank=8, quantization=self.quantization),
            recompute=self.recompute,
            optimizer_state=self.state,
            teacher=self.planned_teacher,
            is_quantization_aware=self.rounded,
        )

    @property
    def logits(self) -> str:
        """Returns "chunked" if the logits of a micro-batch are more than one chunk, else "whole"."""
        from fledgling.model.head_chunk import CHUNK_LOGITS

        return "chunked" if self.rows * self.context * self.vocab_size > CHUNK_LOGITS["cpu"] else "whole"

    def __str__(self) -> str:
        ranks = f", ZeRO-{self.zero} on {self.ranks}" if self.ranks > 1 else ""
        kind = "" if self.documents else ", one document"
        tree = "" if self.deterministic == "auto" else f", deterministic {self.deterministic}"
        how = (", compiled" if self.compiled else "") + (", saving" if self.saving else "")
        how += "" if self.adapter == "none" else f", {self.adapter} on {self.quantization}"
        how += ("" if self.teacher == "none" else f", {self.teacher} teacher") + (", rounded" if self.rounded else "")
        how += "" if self.preset == "nanochat-2025" else f", {self.preset}"
        grouped = "" if self.kv_heads == self.heads else f"/{self.kv_heads}"
        return (
            f"{self.family} {self.depth} x {self.width}, {self.heads}{grouped} heads, V {self.vocab_size:,}, "
            f"{self.micro_batches} x {self.rows} x {self.context}, {self.dtype}, {self.logits}{how}{ranks}{kind}{tree}"
        )


EAGER = (
    Case(4, 128, 8, 256, 512),
    Case(1, 128, 2, 128, 8192),
    Case(8, 128, 4, 128, 1024),
    Case(4, 256, 4, 256, 4096),
    Case(2, 256, 4, 512, 4096, kv_heads=1),
    Case(2, 256, 2, 1024, 1024),
    Case(2, 128, 1, 2048, 1024),
    Case(2, 128, 1, 2048, 1024, documents=False),
    Case(1, 64, 2, 128, 32768),
    Case(2, 192, 16, 128, 8192, heads=3, kv_heads=3),
    Case(6, 384, 2, 256, 8192, heads=3, kv_heads=3),
    Case(4, 64, 1, 32, 512),
    Case(4, 128, 8, 256, 512, dtype="bfloat16"),
    Case(2, 128, 8, 256, 8192, dtype="bfloat16"),
    Case(2, 256, 4, 512, 1024, dtype="bfloat16"),
    Case(1, 128, 1, 64, 16384, dtype="bfloat16"),
    Case(4, 128, 8, 256, 512, family="gpt2"),
    Case(2, 128, 2, 128, 8192, family="gpt2"),
    Case(2, 128, 2, 1100, 1024, family="gpt2"),
    Case(2, 128, 4, 256, 2048, family="gpt2", dtype="bfloat16"),
    Case(4, 128, 8, 256, 512, family="llama", kv_heads=1),
    Case(2, 128, 4, 512, 8192, family="llama"),
    Case(2, 128, 2, 1100, 1024, family="llama", kv_heads=1),
    Case(2, 128, 4, 256, 2048, family="llama", dtype="bfloat16"),
    Case(2, 128, 2, 256, 8192, micro_batches=2),
    Case(2, 128, 2, 256, 8192, micro_batches=4),
    Case(2, 128, 2, 256, 8192, micro_batches=4, deterministic="off"),
    Case(2, 128, 2, 256, 512, micro_batches=3, deterministic="off"),
    Case(4, 256, 2, 128, 4096, saving=True),
    Case(4, 256, 4, 256, 4096, adapter="lora"),
    Case(4, 128, 8, 256, 512, family="llama", kv_heads=1, adapter="lora"),
    Case(2, 128, 4, 256, 2048, family="llama", dtype="bfloat16", adapter="rslora"),
    Case(2, 256, 2, 256, 1024, family="gpt2", adapter="dora"),
    Case(6, 256, 1, 32, 1024, family="llama", adapter="lora"),
    Case(4, 256, 4, 256, 1024, family="llama", adapter="lora", quantization="nf4"),
    Case(4, 512, 1, 128, 512, family="llama", adapter="lora", quantization="int4"),
    Case(4, 512, 1, 128, 512, family="llama", dtype="bfloat16", adapter="lora", quantization="int8"),
    Case(2, 128, 4, 256, 4096, teacher="live"),
    Case(2, 128, 4, 256, 4096, dtype="bfloat16", teacher="live"),
    Case(4, 128, 8, 256, 512, teacher="live"),
    Case(1, 64, 2, 128, 32768, teacher="live"),
    Case(2, 128, 4, 256, 4096, teacher="stored"),
    Case(2, 128, 2, 256, 8192, dtype="bfloat16", micro_batches=2, teacher="stored"),
    Case(4, 128, 8, 256, 512, rounded=True),
    Case(2, 256, 2, 128, 4096, dtype="bfloat16", rounded=True),
)
RANKS = (
    *(
        Case(depth, 128, rows, context, vocabulary, micro_batches=micro, ranks=2, zero=zero)
        for zero in (0, 1, 2, 3)
        for depth, rows, context, vocabulary, micro in (
            (4, 4, 256, 512, 1),
            (2, 1, 256, 8191, 2),
            (6, 1, 256, 1024, 1),
            (4, 1, 32, 512, 1),
            (2, 1, 32, 8192, 1),
            (8, 1, 16, 256, 1),
        )
    ),
    Case(4, 128, 1, 64, 4096, ranks=2, saving=True),
)
COMPILED = (
    Case(2, 256, 4, 256, 1024, dtype="bfloat16", compiled=True),
    Case(2, 256, 4, 256, 1024, compiled=True),
    Case(2, 256, 1, 2048, 1024, dtype="bfloat16", compiled=True),
    Case(2, 256, 1, 2048, 1024, dtype="bfloat16", compiled=True, preset="nanochat-2026"),
    Case(2, 256, 1, 2048, 1024, compiled=True, preset="nanochat-2026"),
    Case(2, 256, 4, 256, 1024, family="gpt2", dtype="bfloat16", compiled=True),
    Case(2, 256, 4, 256, 1024, family="llama", dtype="bfloat16", compiled=True),
    Case(2, 128, 4, 256, 4096, dtype="bfloat16", compiled=True, teacher="live"),
    Case(2, 128, 2, 256, 8192, dtype="bfloat16", micro_batches=2, compiled=True, teacher="stored"),
)


def measure_memory(cases: tuple[Case, ...], log: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """Returns for each case its shape, predicted and measured bytes, relative error, and the moment of the peak."""
    peaks_by_case: dict[Case, int] = {}
    separate = [one for one in cases if one.ranks > 1 or one.compiled]  # compiling changes what the process does later
    for case in (one for one in cases if one not in separate):
        peaks_by_case[case] = measure_case_peak(case)
        log(f"{len(peaks_by_case)}/{len(cases)}: {case}")
    for size in sorted({one.ranks for one in separate}):
        shared = [one for one in separate if one.ranks == size]
        peaks_by_case |= dict(zip(shared, _on_ranks(size, shared), strict=True))
        log(f"{len(peaks_by_case)}/{len(cases)}: {len(shared)} shapes on {size} process{'es' if size > 1 else ''}")
    return [_row(case, peaks_by_case[case]) for case in cases]


def _row(case: Case, measured: int) -> dict[str, Any]:
    phases = memory_by_phase(case.config, case.step)
    moment = max(phases, key=lambda name: phases[name]["total"])
    predicted = phases[moment]["total"]
    return {
        "case": str(case),
        **asdict(case),
        "logits": case.logits,
        "moment": moment,
        "predicted": predicted,
        "measured": measured,
        "error": predicted / measured - 1,
    }


def measure_case_peak(case: Case) -> int:
    """Returns the peak tensor bytes of the case on this rank, without those that existed before."""
    world = World.start("cpu")
    gc.collect()
    bytes_before = count_live_tensor_bytes()
    packed = build_quantized(case) if case.quantization != "none" else None
    with measure_peak_memory(world.device) as peak:
        model = packed or build_model(case.config, DeviceSetup(DTYPES[case.dtype], case.compiled, 0.0), world.device)
        model.recompute = case.recompute
        if packed is None:
            model.initialize(0)
        if case.step.adapter:
            attach_adapter(model, case.step.adapter, case.config)
            initialize_adapter(model, 0)
        table = OptimizerConfig(zero_stage=case.zero, deterministic=case.deterministic, state=case.state)
        optimizer = Optimizer(model, table, world, compiled=case.compiled, dtype=DTYPES[case.dtype])
        phases = (
            [optimizer.full_state_dict(), copy_tensors(model.state_dict(), {}) if world.is_main else {}]
            if case.saving
            else []
        )
        if case.rounded:
            fake_quantize(model, "int8")
        distill = DistillConfig(teacher="", top_k=TOP_K if case.teacher == STORED else None)
        batch = RandomBatches(case.vocab_size, case.rows * case.micro_batches, case.context, world.rank).batch
        loss: Any = next_token_loss
        if case.planned_teacher:
            teacher = build_teacher(case.planned_teacher, DTYPES[case.dtype]) if case.teacher == LIVE else None
            divergences = choose_divergences(case.compiled, world.device)
            if teacher:
                compile_teacher(teacher, case.compiled, world.device)
            batch = add_predictions(batch, distill)
            loss = partial(distillation_loss, config=distill, teacher=teacher, divergences=divergences)
        if not case.documents:
            batch.document_ids = None
        stage = Stage("bench", STEPS, None, loss, lambda progress: 1.0)  # type: ignore[arg-type]
        for _ in range(STEPS):
            loop.train_step(stage, model, optimizer, batch.split(case.rows), world)
        phases.clear()
    return peak.bytes - bytes_before


def build_teacher(planned: PlannedTeacher, dtype: torch.dtype) -> Transformer:
    """Returns a frozen teacher as `train` holds it."""
    teacher = Transformer(planned.config)
    teacher.initialize(0)
    return hold_matrices(teacher, dtype)


def build_quantized(case: Case) -> Transformer:
    """Returns the case's model with quantized matrices: what is left once they are made."""
    model = build_model(case.config, DeviceSetup(DTYPES[case.dtype], False, 0.0), torch.device("cpu"))
    model.initialize(0)
    quantize_blocks(model.requires_grad_(False), case.quantization)
    gc.collect()
    return model


def _on_ranks(size: int, cases: list[Case]) -> list[int]:
    """Returns the peak of each case on `size` processes, that of the rank with the most."""
    with tempfile.TemporaryDirectory() as folder:
        _run_ranks(size, folder, json.dumps([asdict(case) for case in cases]))
        peaks = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    return [max(ranks) for ranks in zip(*peaks, strict=True)]


def _run_ranks(size: int, folder: str, job: str) -> None:
    """Runs `main` in `size` processes of this machine."""
    command = (
        "import sys; from fledgling.runtime.launch import launch_ranks; "
        f"sys.exit(launch_ranks({size}, 'cpu', sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, "-m", "benchmarks.memory", folder, job], capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"{size} ranks on this machine failed: {done.stderr.strip()[-300:]}")


def format_memory(rows: list[dict[str, Any]]) -> str:
    """Returns the result of `measure_memory` as a table."""
    width = max(len(row["case"]) for row in rows)
    lines = [f"{'':<{width}}  {'predicted':>11} {'measured':>11}  error  moment"]
    for row in rows:
        sizes = f"{row['predicted'] / 1e6:>8,.1f} MB {row['measured'] / 1e6:>8,.1f} MB"
        lines.append(f"{row['case']:<{width}}  {sizes} {row['error']:>+6.1%}  {row['moment']}")
    worst = max(rows, key=lambda row: abs(row["error"]))
    lines.append(f"{len(rows)} shapes; the largest error is {worst['error']:+.2%}: {worst['case']}")
    return "\n".join(lines)


def main(folder: str, job: str) -> None:
    """Measures the cases of `job` (JSON) on this rank, and writes their peaks to `folder`/RANK.json."""
    torch.set_num_threads(1)
    PendingCollective.wait = _wait_longer(PendingCollective.wait)  # type: ignore[method-assign]
    peaks = [measure_case_peak(Case(**fields)) for fields in json.loads(job)]
    Path(folder, f"{World.start('cpu').rank}.json").write_text(json.dumps(peaks))
    leave_process_group()


def _wait_longer(wait: Callable) -> Callable:
    """Returns `wait` followed by ten milliseconds, in which gloo's thread releases its buffers.

    The measured thread is then the last to free them.
    """

    def wait_and_sleep(pending: PendingCollective):
        result = wait(pending)
        time.sleep(0.01)
        return result

    return wait_and_sleep


if __name__ == "__main__":
    main(*sys.argv[1:])
