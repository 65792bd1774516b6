"""A training step on an accelerator that is not there: fake tensors on "cuda" and "mps" run it from beginning to end.

On CUDA the host reads nothing inside a step, and loss and norm in one read after it, which the loop makes one step late
(`train/test_queued_step.py`); on an Apple GPU, and in float16, it reads them one after another. No float64 and no
(T, T) mask is made on the device; no tensor is on the CPU; few operations and few bytes are launched. Attention itself
is replaced by one operation.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fake_accelerator
from tests.fake_accelerator_steps import CASES, ON_MPS, TIME

pytestmark = [
    pytest.mark.skipif(bool(fake_accelerator.missing()), reason=fake_accelerator.missing()),
    pytest.mark.timeout(900),  # the first test waits for all cases
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """What every case did, by device type and name; in a process of its own."""
    guard = fake_accelerator.build(tmp_path_factory.mktemp("guard"))
    command = [sys.executable, "-m", "tests.fake_accelerator_steps", str(guard), "cuda", "mps"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=840)
    assert found.returncode == 0, found.stderr[-3000:]
    rows = map(json.loads, found.stdout.splitlines())
    return {(row["kind"], row["case"]): row for row in rows}


@pytest.mark.parametrize("case", [*CASES, "d20"])
def test_a_step_on_cuda_is_queued_without_a_read_and_makes_no_mask(steps, case):
    step = steps["cuda", case]
    assert "error" not in step, step["error"]
    assert not step["faults"]
    if case == "float16":  # the scale of the next loss depends on this gradient
        assert 0 < step["reads_in_step"] <= 3 and step["operations_between_reads"] <= 2, (
            "after backward, before the update"
        )
    else:
        assert step["reads_in_step"] == 0 and step["reads"] == 1, "norm and losses together, when the loop asks"


@pytest.mark.parametrize("case", ON_MPS)
def test_a_step_on_an_apple_gpu_has_no_float64_and_waits_once(steps, case):
    step = steps["mps", case]
    assert "error" not in step, step["error"]
    masks = f"{TIME}, {TIME})"  # flex attention, which needs none, is for CUDA
    assert not [fault for fault in step["faults"] if not fault.endswith(masks)]
    assert step["reads"] <= 3 and step["operations_between_reads"] <= 2


def test_the_head_moves_few_bytes_at_depth_20(steps):
    moved = steps["cuda", "d20"]["bytes"]["head"]
    assert 33e9 < moved <= 80e9  # chunks of 64 tokens would move 1,422e9


def test_the_head_moves_the_bytes_of_positions_with_a_target(steps):
    whole, half = (steps["cuda", case]["bytes"]["head"] for case in ("pretrain", "answers"))
    assert 0.5 * whole < half < 0.7 * whole, "the head's own weights and gradients are moved in both"


def test_a_step_at_depth_20_launches_few_kernels(steps):
    operations = steps["cuda", "d20"]["operations"]
    launched = sum(count for name, count in operations.items() if name.endswith("other") and "attention" not in name)
    assert 200 < launched <= 1200, operations


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_run_is_resumed_on_a_device_and_back_with_the_same_state(steps, kind):
    begun, moved, back = steps[kind, "moved"]["states"]
    assert {name.split()[0] for name in begun} == {"model", "optimizer"}
    assert {"optimizer count", "optimizer loss_scale", "model head.weight"} < begun.keys()
    # a checkpoint is in host memory wherever it was made, apart from weights, which the saver copies
    assert {name: value[:2] for name, value in moved.items()} == {name: value[:2] for name, value in begun.items()}
    assert back == begun and all(value[2] == "cpu" for name, value in moved.items() if name.startswith("optimizer"))
