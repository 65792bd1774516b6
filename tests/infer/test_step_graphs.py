"""A step runs plainly at first, then as a graph, and plainly for ever once a capture fails."""

import pytest
import torch

from fledgling.infer.step_graphs import RUNS_BEFORE_CAPTURE, StepGraphs, compile_or_fall_back


class Graph:
    def __init__(self, step):
        self.replay = step


def make_graphs(monkeypatch, capture=None):
    notices, events = [], []
    graphs = StepGraphs(captures=True, report=notices.append)

    def record(step):
        events.append("capture")
        return Graph(lambda: events.append("replay")), torch.zeros(1)

    monkeypatch.setattr(graphs, "_capture", capture or record)

    def step():
        events.append("plain")
        return torch.ones(1)

    return graphs, step, events, notices


def test_a_shape_is_captured_after_plain_runs_and_then_replayed(monkeypatch):
    graphs, step, events, notices = make_graphs(monkeypatch)
    for _ in range(RUNS_BEFORE_CAPTURE + 2):
        graphs.run((0, 8), step)
    assert events == ["plain"] * RUNS_BEFORE_CAPTURE + ["capture", "replay", "replay"]
    graphs.run((0, 4), step)  # a shape of its own
    assert events[-1] == "plain" and not notices


def test_graphs_of_an_earlier_storage_are_dropped(monkeypatch):
    graphs, step, events, _ = make_graphs(monkeypatch)
    for _ in range(RUNS_BEFORE_CAPTURE + 1):
        graphs.run((0, 8), step)
    graphs.run((1, 8), step)
    assert events[-1] == "plain" and not graphs.graphs


def test_a_capture_that_fails_is_reported_once_and_steps_continue(monkeypatch):
    def fail(step):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    graphs, step, events, notices = make_graphs(monkeypatch, fail)
    outputs = [graphs.run((0, 8), step) for _ in range(RUNS_BEFORE_CAPTURE + 3)]
    assert all(float(output) == 1 for output in outputs)
    assert events == ["plain"] * len(outputs)
    assert len(notices) == 1 and "\n" not in notices[0] and "stream is capturing" in notices[0]


def test_a_block_that_cannot_be_compiled_is_reported_once_and_runs_as_it_is(monkeypatch):
    def fail(function, **options):
        def run(*args):
            raise RuntimeError("no kernel\nfor this GPU")

        return run

    notices = []
    monkeypatch.setattr(torch, "compile", fail)
    run = compile_or_fall_back(lambda x: x + 1, notices.append)
    assert [float(run(torch.zeros(()))) for _ in range(3)] == [1, 1, 1]
    assert len(notices) == 1 and "no kernel for this GPU" in notices[0]


def test_an_error_of_the_block_itself_is_not_hidden(monkeypatch):
    def fail(x):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    with pytest.raises(RuntimeError, match="shapes differ"):
        compile_or_fall_back(fail, lambda line: None)(torch.zeros(()))
