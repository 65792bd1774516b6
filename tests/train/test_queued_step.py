"""Results that the host reads one step late: every line, checkpoint, rollback and stop is as if they were read at once.

A CPU reads at once; here its optimizer decides as CUDA's does, without the host.
"""

import math
import shutil
from collections import deque
from pathlib import Path

import pytest
import torch

from fledgling.data.batch import Batch
from fledgling.optim.optimizer import Optimizer
from fledgling.record import read_jsonl
from fledgling.train import loop, run
from fledgling.train.queued_step import QueuedStep, SmoothedLoss, StepRecord, StepResult
from tests.all_stages import make_all_stages_recipe
from tests.stop_request import StopRequest
from tests.train.test_health import are_equal, load_outcome, make_steps_bad, run_without_evals

STAGE = "run/pretrain"
ROLLBACK = {"run.max_rollbacks": 1, "pretrain.steps": 10, "pretrain.save_every": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("late")


pytestmark = pytest.mark.usefixtures("one_thread_known_peak")


def decide_late(patch):
    """Makes every optimizer decide on its device, and notes in which order steps are queued and read."""
    events = []

    def make(*arguments):
        optimizer = Optimizer(*arguments)
        optimizer.decides_on_device = True
        return optimizer

    def queue(stage, *arguments, queue_step=loop.queue_step):
        number = stage.batches.step
        events.append(f"queue {number}")
        read = queue_step(stage, *arguments)

        def read_and_note():
            events.append(f"read {number}")
            return read()

        return read_and_note

    patch.setattr(run, "Optimizer", make)
    patch.setattr(loop, "queue_step", queue)
    return events


def outcome(out):
    """Returns the tensors and counts at the end, and of every line all but times."""
    tensors, state = load_outcome(out)
    kept = ("step", "loss", "gradient_norm", "data", "lr_multiplier", "skipped", "rollbacks", "tokens", "targets")
    lines = [{key: line.get(key) for key in kept} for line in read_jsonl(out / "pretrain/metrics.jsonl")]
    return tensors, {key: state[key] for key in ("step", "stream", "health")}, lines


def run_both(folder, patch, bad=(), stop_after=0, **settings):
    """Returns the outcomes of a run whose results are read at once and of one whose are read late, and its events."""
    make_steps_bad(patch, bad)
    outcomes, events = [], []
    for late in (False, True):
        recipe = make_all_stages_recipe(folder, **settings)
        with patch.context() as inner:
            if late:
                events = decide_late(inner)
            if stop_after:
                with inner.context() as stopping, pytest.raises(loop.TrainingStopped, match=f"after step {stop_after}"):
                    stopping.setattr(run, "catch_stop_signals", StopRequest(stop_after))
                    run_without_evals(recipe)
            assert run_without_evals(recipe)
        outcomes.append(outcome(Path(recipe.run.out)))
        shutil.rmtree(folder / STAGE)  # tokenizer and data stay
    return *outcomes, events


def require_same(at_once, late):
    assert are_equal(at_once[0], late[0]), "weights and moments"
    assert at_once[1:] == late[1:]


def test_a_result_is_read_while_the_next_step_is_made_unless_the_weights_are_needed(folder, monkeypatch):
    at_once, late, events = run_both(folder, monkeypatch, **{"pretrain.steps": 5, "pretrain.save_every": 3})
    require_same(at_once, late)
    assert [line["step"] for line in late[2]] == [1, 2, 3, 4, 5]
    order = "queue 1, queue 2, read 1, queue 3, read 2, read 3, queue 4, queue 5, read 4, read 5"
    assert ", ".join(events) == order, "step 3 is saved, step 5 is the last"


def test_a_stop_finds_the_state_of_the_step_that_it_names(folder, monkeypatch):
    settings = {"pretrain.steps": 6, "pretrain.save_every": 0}
    at_once, late, events = run_both(folder, monkeypatch, bad={3}, stop_after=4, **settings)
    require_same(at_once, late)
    assert late[1]["health"]["skipped"] == 1 and math.isnan(late[2][3]["loss"] or math.nan)
    assert events[6:8] == ["read 3", "read 4"] and events[8] == "queue 5"


def test_a_rollback_discards_what_was_queued_after_the_bad_step(folder, monkeypatch):
    """Steps 5, 6 and 7 are bad; step 8 was queued when the third is read, and its batch is read again."""
    at_once, late, events = run_both(folder, monkeypatch, bad={4, 5, 6}, **ROLLBACK)
    require_same(at_once, late)
    assert late[1]["stream"]["skipped"] == 3 and events.count("queue 8") == 2
    assert late[1]["health"] == {"skipped": 3, "bad": 0, "rollbacks": 1, "empty": 0, "rescaled": 0}


def test_the_seconds_of_a_step_begin_where_those_of_the_step_before_end(monkeypatch):
    times = iter((5.0, 9.0, 20.0))
    monkeypatch.setattr("fledgling.train.queued_step.time.perf_counter", lambda: next(times))
    record = StepRecord(*[None] * 9)
    batch = [Batch(torch.zeros(1, 1), torch.zeros(1, 1))]
    queued = deque(
        QueuedStep(n, started, lambda: StepResult(1.0, 1.0, True), batch, 1.0, {})
        for n, started in ((1, 1.0), (2, 3.0), (3, 12.0))
    )
    assert [seconds for *_, seconds in record.wait(queued)] == [4.0, 4.0, 8.0]


def test_the_smoothed_loss_has_no_start_value_and_begins_again_after_one_that_is_not_finite():
    smoothed, losses = SmoothedLoss(), [7.0, 6.0, 4.0]
    assert math.isnan(smoothed.mean)
    for number, loss in enumerate(losses):
        smoothed.add(loss)
        weights = [0.9 ** (number - i) for i in range(number + 1)]
        mean = sum(weight * loss for weight, loss in zip(weights, losses, strict=False)) / sum(weights)
        assert smoothed.mean == pytest.approx(mean)
    smoothed.add(math.inf)
    assert math.isnan(smoothed.mean)
    smoothed.add(2.0)
    assert smoothed.mean == pytest.approx(2.0)
