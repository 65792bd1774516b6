"""/metrics: every exported name is a counter of the worker or its scheduler."""

from fledgling.infer.scheduler import SchedulerStats
from fledgling.serve.metrics import COUNTERS, STATS, render_metrics
from fledgling.serve.worker import Worker, WorkerCounters


def test_every_counter_is_exported_under_its_name(random_engine) -> None:
    assert set(COUNTERS) == set(vars(WorkerCounters()))
    assert set(STATS) <= set(vars(SchedulerStats()))
    worker = Worker(random_engine)
    text = render_metrics(worker).decode()
    worker.close()
    for name in (*COUNTERS, *STATS):
        assert f"fledgling_{name}_total 0.0" in text
    assert "fledgling_draft_acceptance_rate 0.0" in text
