"""/metrics: every exported name is a counter of the worker or its scheduler."""

from fledgling.infer.scheduler import SchedulerStats
from fledgling.serve.metrics import COUNTERS, STATS, render_metrics
from fledgling.serve.service import Service
from fledgling.serve.worker import Worker, WorkerCounters


def test_every_counter_is_exported_under_its_name(random_engine) -> None:
    assert set(COUNTERS) == set(vars(WorkerCounters()))
    assert set(STATS) <= set(vars(SchedulerStats()))
    worker = Worker(random_engine)
    service = Service(worker, random_engine.tokenizer, "tiny", 1)
    service.ignored_fields.add(["user", "user", 'a"\n'])
    text = render_metrics(service).decode()
    worker.close()
    assert 'fledgling_ignored_fields_total{field="user"} 2.0' in text
    assert 'fledgling_ignored_fields_total{field="a\\"\\n"} 1.0' in text
    for name in (*COUNTERS, *STATS):
        assert f"fledgling_{name}_total 0.0" in text
    assert "fledgling_draft_acceptance_rate 0.0" in text
