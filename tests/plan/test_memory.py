"""Tests memory of training and inference: published peaks, sums of components, and chosen micro-batch sizes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledgling.config import UserError
from fledgling.model.attention import MAX_BLOCKWISE_TRAINING, QUERY_BLOCK
from fledgling.optim.partition import partition_parameters
from fledgling.plan import activations, memory, split
from fledgling.plan.memory import estimate_peak_memory, memory_by_phase
from fledgling.plan.optimizer_state import resolve_state
from fledgling.plan.parameters import parameter_shapes
from fledgling.plan.training_step import TrainingStep

from .models import config

MIB = 2**20


def published_layout_mib(depth: int, vocab_size: int, rows: int, ranks: int) -> float:
    """Returns the MiB of another system's step of 524,288 tokens, in its own layout."""
    micro = max(1, 524_288 // (rows * 2_048 * ranks))
    step = TrainingStep(rows, 2_048, ranks=ranks, micro_batches=micro, layout="whole-logits")
    return estimate_peak_memory(config(depth, vocab_size), step)["total"] / MIB


@pytest.mark.parametrize(
    ("depth", "rows", "ranks", "measured"),  # MiB, torch.cuda.max_memory_allocated; vocabulary 65,536
    [(10, 8, 1, 7_496.89), (20, 8, 1, 29_596.27), (20, 32, 8, 75_422.02)],
)
def test_the_planner_is_within_a_tenth_of_published_peaks(depth, rows, ranks, measured):
    assert published_layout_mib(depth, 65_536, rows, ranks) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("depth", "rows", "measured", "tolerance"),  # vocabulary 32,768; a later architecture, with extras
    [(12, 8, 9_435, 0.1), (12, 16, 20_578, 0.21), (16, 16, 27_688, 0.1), (16, 32, 48_400, 0.1), (18, 16, 32_422, 0.1)],
)
def test_peaks_of_a_later_architecture_are_within_their_tolerance(depth, rows, measured, tolerance):
    assert published_layout_mib(depth, 32_768, rows, 1) == pytest.approx(measured, rel=tolerance)


def test_the_planner_and_the_model_agree_on_constants():
    assert (activations.QUERY_BLOCK, activations.MAX_BLOCKWISE_CONTEXT) == (QUERY_BLOCK, MAX_BLOCKWISE_TRAINING)


STEPS = st.builds(
    TrainingStep,
    rows=st.integers(1, 16),
    context=st.sampled_from([64, 256, 1_024, 2_048]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    micro_batches=st.integers(1, 5),
    ranks=st.sampled_from([1, 2, 3, 8]),
    zero_stage=st.sampled_from([0, 1, 2]),
    device=st.sampled_from(["cpu", "cuda"]),
    compiled=st.booleans(),
    packed_documents=st.booleans(),
    copies_weights_for_eval=st.booleans(),
)
MODELS = st.builds(
    lambda depth, family: config(depth, 4_096, family=family),
    depth=st.integers(1, 6),
    family=st.sampled_from(["fledgling", "gpt2", "llama"]),
)


@given(step=STEPS, model=MODELS)
def test_every_phase_adds_up_and_the_peak_is_the_largest(step, model):
    phases = memory_by_phase(model, step)
    for components in phases.values():
        assert components["total"] == sum(value for name, value in components.items() if name != "total")
        assert all(value >= 0 and isinstance(value, int) for value in components.values())
    assert estimate_peak_memory(model, step)["total"] == max(components["total"] for components in phases.values())


@given(step=STEPS, model=MODELS)
def test_more_rows_need_more_memory_and_more_ranks_hold_less_state(step, model):
    more = estimate_peak_memory(model, replace(step, rows=step.rows + 1))["total"]
    assert more > estimate_peak_memory(model, step)["total"]
    one, eight = (memory_by_phase(model, replace(step, ranks=r, zero_stage=1))["head"]["optimizer"] for r in (1, 8))
    assert one / 8 <= eight < one / 2


def test_muon_and_adamw_have_their_own_state_sizes():
    d12 = config(12)
    states = memory_by_phase(d12, TrainingStep(1, 2_048))["head"]["optimizer"]
    tables = 2 * 65_536 * d12.width
    assert states == 4 * (12 * 12 * d12.width**2) + 8 * tables


def test_deterministic_sums_keep_the_gradients_of_a_binary_tree():
    """Deterministic sums keep a whole gradient at every doubling of the micro-batches; other sums keep one."""
    d4 = config(4, 1_024, 256)
    deterministic, plain = (
        [
            memory_by_phase(d4, TrainingStep(1, 256, micro_batches=n, device="cpu", deterministic=tree))["head"][
                "gradients"
            ]
            for n in (1, 2, 4, 8)
        ]
        for tree in (True, False)
    )
    full = 4 * sum(tensor for tensor in (2 * 1_024 * 256, 12 * 4 * 256**2))
    assert [gradients - deterministic[0] for gradients in deterministic] == [0, full, 2 * full, 3 * full]
    assert [gradients - plain[0] for gradients in plain] == [0, full, full, full]


@given(rows=st.integers(1, 200), gib=st.integers(9, 80))
def test_the_micro_batch_size_divides_the_rows_fits_and_is_the_largest(rows, gib):
    d12, step = config(12), TrainingStep(1, 2_048)
    micro = split.choose_split(d12, rows, gib * 2**30, step).rows
    assert rows % micro == 0
    assert memory.fits_memory(d12, replace(step, rows=micro, micro_batches=rows // micro), gib * 2**30)
    larger = [n for n in range(micro + 1, min(rows, split.MAX_MICRO_BATCH_ROWS) + 1) if rows % n == 0]
    assert not any(memory.fits_memory(d12, replace(step, rows=n, micro_batches=rows // n), gib * 2**30) for n in larger)


def test_a_cpu_gets_no_larger_micro_batch_than_makes_it_faster():
    d4 = config(4, 1_024, 256)
    assert split.choose_split(d4, 64, 1 << 40, TrainingStep(1, 256, device="cpu")).rows == 8_192 // 256
    assert split.choose_split(d4, 64, 1 << 40, TrainingStep(1, 256, device="cuda")).rows == 64


def test_state_in_eight_bits_or_in_host_memory_is_counted_and_offered_where_a_row_does_not_fit():
    step = TrainingStep(1, 2_048, micro_batches=8)
    small, host = (replace(step, optimizer_state=form) for form in ("8bit", "host"))
    plain, eight, none = (estimate_peak_memory(config(20), each) for each in (step, small, host))
    partition = partition_parameters(parameter_shapes(config(20)))
    values = partition.estimate_memory(0).optimizer_state
    assert plain["optimizer"] == 4 * values and eight["optimizer"] == pytest.approx(values * (1 + 4 / 256), rel=0.01)
    assert none["optimizer"] < 0.001 * plain["optimizer"]
    between = (plain["total"] + eight["total"]) // 2
    between += memory.memory_slack(between, "cuda")
    with pytest.raises(UserError, match=r'use optimizer\.state="8bit"'):
        split.choose_split(config(20), 8, between, step)
    assert split.choose_split(config(20), 8, between, small).rows == 1
    with pytest.raises(UserError, match=r"use (?!optimizer.state)"):
        split.choose_split(config(20), 8, 2**30, replace(step, device="cpu"))
    assert resolve_state("host", "cpu") == resolve_state("host", "mps") == "float32"


def test_a_step_that_does_not_fit_is_one_line():
    with pytest.raises(UserError, match=r"1 rows of 2048 tokens need .* GiB .* 1\.0 GiB: use .*or a larger device"):
        split.choose_split(config(20), 8, 2**30, TrainingStep(1, 2_048))
