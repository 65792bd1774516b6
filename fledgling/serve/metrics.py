"""What the server has done, in Prometheus' text format (written by its own client library)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from fledgling.serve.worker import Worker

COUNTERS = {
    "requests": "Requests taken into the queue.",
    "refused": "Requests turned away because the queue was full.",
    "cancelled": "Requests whose client left before the end.",
    "prompt_tokens": "Tokens of prompts.",
    "answer_tokens": "Tokens of answers, tool output included.",
    "steps": "Decoding steps of the whole batch.",
    "busy_seconds": "Seconds in which the engine worked.",
}


class _Collector:
    """Reads a worker's counters at the moment they are asked for."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def collect(self):
        """Yield every counter, and how much is under way."""
        for name, text in COUNTERS.items():
            family = CounterMetricFamily(f"fledgling_{name}", text)
            family.add_metric([], getattr(self.worker.counters, name))
            yield family
        yield GaugeMetricFamily("fledgling_load", "Requests waiting or under way.", self.worker.load)


def exposition(worker: Worker) -> bytes:
    """The metrics of a worker as a scrape expects them."""
    registry = CollectorRegistry()
    registry.register(_Collector(worker))
    return generate_latest(registry)
