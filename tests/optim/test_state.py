"""Optimizer state in 8 bits and in host memory: what is stored reads back, resumes, is sharded, and is counted.

The thresholds of `partition.py` are lowered, so that the small model of `test_optimizer.py` has such state.
"""

import math

import pytest
import torch

from fledgling.optim import partition, state
from fledgling.optim.partition import partition_parameters
from fledgling.optim.state import BlockwiseState, HostState, PlainState, make_codebook, make_state
from tests.optim.test_optimizer import SHAPES, are_equal, make_optimizer, run_steps
from tests.ranks import on_ranks, one_thread

CPU = torch.device("cpu")
ROWS = {"exp_avg": 1e-3, "exp_avg_sq": 1e-6}  # name -> size of its values


@pytest.fixture(autouse=True)
def all_sizes(monkeypatch):
    lower_thresholds(monkeypatch)


def lower_thresholds(patch):
    """Lets state of any size be stored in 8 bits, in pieces of few rows."""
    patch.setattr(partition, "SMALL_STATE_VALUES", 0)
    patch.setattr(state, "state_piece_values", lambda device: 24)


def stored(name, columns=300):
    """Returns (values, the state that they are written to), with one block of zeros and one almost of zeros."""
    values = torch.randn(6, columns, generator=torch.Generator().manual_seed(0)) * ROWS[name] ** 0.5
    values = values.square() if name == "exp_avg_sq" else values * ROWS[name] ** 0.5
    values[2], values[3] = 0.0, values[3] * 1e-35
    made = make_state((6, columns), name, (6, columns), "8bit", CPU)
    made.write(values)
    return values, made


@pytest.mark.parametrize("is_root", [False, True])
def test_codes_are_ascending_fractions_with_one_and_zero(is_root):
    codebook = make_codebook(is_root, CPU)
    assert len(codebook) == 255 + is_root and codebook.diff().min() > 0
    assert codebook[-1] == 1 and codebook[0] == (0 if is_root else -1) and (codebook == 0).sum() == 1


def test_a_second_moment_above_zero_is_never_stored_as_zero():
    values = torch.ones(1, 256)
    values[0, 0] = 1e-22  # a step is divided by its root
    made = make_state((1, 256), "exp_avg_sq", (1, 256), "8bit", CPU)
    made.write(values)
    assert made.read()[0, 0] > 0


@pytest.mark.parametrize("columns", [64, 256, 300])
@pytest.mark.parametrize("name", ROWS)
def test_eight_bits_keep_values_within_a_small_part_of_the_largest_of_a_block(name, columns):
    values, made = stored(name, columns)
    assert isinstance(made, BlockwiseState) and made.nbytes == 6 * columns + 6 * 4 * -(-columns // 256)
    root = torch.sqrt if name == "exp_avg_sq" else torch.clone
    difference = (root(made.read()) - root(values)).abs()
    largest = root(values).abs().amax(-1, keepdim=True)
    assert (difference <= (0.0036 if name == "exp_avg_sq" else 0.0072) * largest + 1e-18).all(), (
        "half of the widest step"
    )
    if name == "exp_avg_sq":
        assert (made.read()[values > 1e-30] > 0).all(), "a rounded 0 would make a step of any length"


@pytest.mark.parametrize("name", ROWS)
def test_storing_what_was_read_changes_no_bit(name):
    _, made = stored(name)
    first = made.read()
    made.write(first)
    assert torch.equal(made.read(), first)
    made[1:3].write(torch.zeros(2, 300))
    assert not made.read()[1:3].any() and torch.equal(made.read()[3:], first[3:]), "a part shares its memory"


def test_small_and_row_wise_state_keeps_fp32(monkeypatch):
    monkeypatch.setattr(partition, "SMALL_STATE_VALUES", 4096)
    for name, shape in (("exp_avg", (63, 64)), ("exp_avg", (9000,)), ("exp_avg_sq_row", (5000, 2))):
        assert isinstance(make_state(shape, name, shape, "8bit", CPU), PlainState)
    assert isinstance(make_state((64, 64), "exp_avg", (64, 64), "host", CPU), PlainState), (
        "a CPU's memory is the host's"
    )
    assert isinstance(make_state((2, 64), "exp_avg", (64, 64), "8bit", CPU), BlockwiseState), "by the whole parameter"


def train(steps, saved=None, late=False, **fields):
    world, model, optimizer = make_optimizer(**fields)
    if saved:
        model.load_state_dict(saved["weights"])
        optimizer.load_full_state_dict(saved["state"])
    run_steps(model, optimizer, world, steps, late=late)
    return {"weights": model.state_dict(), "state": optimizer.full_state_dict()}


@pytest.mark.parametrize("rule", ["muon", "normuon", "adamw"])
def test_training_in_eight_bits_stays_near_fp32_and_resumes_exactly(rule):
    plain = train(range(6), matrix_optimizer=rule)
    small = train(range(6), matrix_optimizer=rule, state="8bit")
    assert not are_equal(plain["weights"], small["weights"])
    start = train(range(0))["weights"]
    for name, value in plain["weights"].items():
        moved, difference = (value - start[name]).norm(), (small["weights"][name] - value).norm()
        assert difference <= 0.1 * moved, f"{name}: {difference:.4f} after a way of {moved:.4f}"
    half = train(range(3), matrix_optimizer=rule, state="8bit")
    assert are_equal(train(range(3, 6), half, matrix_optimizer=rule, state="8bit")["weights"], small["weights"])
    late = train(range(6), late=True, matrix_optimizer=rule, state="8bit")
    assert are_equal(late["weights"], small["weights"])


def on_a_rank():
    lower_thresholds(pytest.MonkeyPatch())
    return [train(range(3), zero_stage=stage, state="8bit") for stage in (0, 1, 2)]


def test_ranks_store_the_same_codes(monkeypatch):
    with one_thread():
        one = train(range(3), state="8bit")
        for rank, stages in enumerate(on_ranks(2, on_a_rank)):
            for outcome in stages:
                assert are_equal(outcome["weights"], one["weights"])
                assert rank or are_equal(outcome["state"], one["state"])


@pytest.mark.parametrize("rule", ["muon", "adamw"])
def test_state_in_host_memory_changes_no_bit(rule, monkeypatch):
    plain = train(range(4), matrix_optimizer=rule)
    monkeypatch.setattr(
        state,
        "make_state",
        lambda shape, name, whole, form, device: (
            HostState(torch.zeros(shape), CPU) if len(whole) > 1 else PlainState(torch.zeros(shape))
        ),
    )
    away = train(range(4), matrix_optimizer=rule)
    assert are_equal(away["weights"], plain["weights"]) and are_equal(away["state"], plain["state"])
    _, _, optimizer = make_optimizer(matrix_optimizer=rule)
    on_device = sum(each.nbytes for each in optimizer.state.values())
    assert on_device == 2 * 4 * sum(math.prod(shape) for shape in SHAPES.values() if len(shape) < 2)


@pytest.mark.parametrize("form", ["float32", "8bit"])
@pytest.mark.parametrize("rule", ["muon", "normuon", "adamw"])
def test_the_planner_counts_the_bytes_that_the_optimizer_holds(rule, form):
    _, _, optimizer = make_optimizer(matrix_optimizer=rule, state=form)
    held = sum(each.nbytes for each in optimizer.state.values())
    counted = partition_parameters(SHAPES, matrix_optimizer=rule)
    assert counted.count_state_bytes(form) == held
    if form == "float32":
        assert held == 4 * counted.estimate_memory(0).optimizer_state
