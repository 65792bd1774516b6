"""The server's counters in Prometheus' text format, for /metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fledgling.serve.worker import Worker

COUNTERS = {  # fields of WorkerCounters
    "requests": "Requests accepted into the queue.",
    "rejected": "Requests rejected because the queue was full.",
    "cancelled": "Requests whose client disconnected before the end.",
    "prompt_tokens": "Tokens of prompts.",
    "completion_tokens": "Tokens of answers, including tool output.",
    "steps": "Scheduler steps.",
    "busy_seconds": "Seconds in which the engine computed.",
}
STATS = {  # fields of SchedulerStats
    "cached_tokens": "Prompt tokens found in the cache: computed for another row or an earlier request.",
    "prefilled_tokens": "Prompt tokens that were computed.",
    "prefill_chunks": "Prefilled chunks of prompts.",
    "decode_steps": "Decoding steps: one token of each running row.",
    "device_steps": "Of these, steps whose tokens are read while the next one runs.",
    "drafted": "Draft tokens of prompt lookup.",
    "accepted": "Draft tokens that were accepted.",
}


class _WorkerCollector(Collector):
    """Reads a worker's counters when they are scraped."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def collect(self) -> Iterator[Metric]:
        """Yields every counter and gauge."""
        stats, cache = self.worker.stats, self.worker.cache
        for names, values in ((COUNTERS, self.worker.counters), (STATS, stats)):
            for name, text in names.items():
                family = CounterMetricFamily(f"fledgling_{name}", text)
                family.add_metric([], getattr(values, name))
                yield family
        yield GaugeMetricFamily("fledgling_load", "Requests waiting or running.", self.worker.load)
        yield GaugeMetricFamily(
            "fledgling_prefix_hit_rate", "Share of prompt tokens found in the cache.", stats.prefix_hit_rate
        )
        yield GaugeMetricFamily(
            "fledgling_draft_acceptance_rate", "Share of draft tokens that were accepted.", stats.acceptance_rate
        )
        used_bytes = cache.used_blocks * cache.block_bytes
        yield GaugeMetricFamily("fledgling_cache_bytes", "Bytes of keys and values, of rows and prefixes.", used_bytes)


def render_metrics(worker: Worker) -> bytes:
    """Returns the metrics of a worker."""
    registry = CollectorRegistry()
    registry.register(_WorkerCollector(worker))
    return generate_latest(registry)
