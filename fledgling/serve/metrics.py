"""The server's counters in Prometheus' text format, for /metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fledgling.serve.extra_fields import FieldCounter
from fledgling.serve.service import Service

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


class _ServiceCollector(Collector):
    """Reads a service's counters when they are scraped."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.worker = service.worker

    def collect(self) -> Iterator[Metric]:
        """Yields every counter and gauge."""
        stats, cache = self.worker.stats, self.worker.cache
        for names, values in ((COUNTERS, self.worker.counters), (STATS, stats)):
            for name, text in names.items():
                family = CounterMetricFamily(f"fledgling_{name}", text)
                family.add_metric([], getattr(values, name))
                yield family
        yield _count_names(
            "ignored_fields", "field", "Fields of requests that change no answer.", self.service.ignored_fields
        )
        yield _count_names(
            "changed_turns", "change", "Messages that were joined, dropped or cut.", self.service.changed_turns
        )
        yield GaugeMetricFamily("fledgling_load", "Answers waiting or running.", self.worker.load)
        yield GaugeMetricFamily(
            "fledgling_prefix_hit_rate", "Share of prompt tokens found in the cache.", stats.prefix_hit_rate
        )
        yield GaugeMetricFamily(
            "fledgling_draft_acceptance_rate", "Share of draft tokens that were accepted.", stats.acceptance_rate
        )
        used_bytes = cache.used_blocks * cache.block_bytes
        yield GaugeMetricFamily("fledgling_cache_bytes", "Bytes of keys and values, of rows and prefixes.", used_bytes)


def _count_names(name: str, label: str, text: str, counter: FieldCounter) -> CounterMetricFamily:
    family = CounterMetricFamily(f"fledgling_{name}", text, labels=[label])
    for value, count in sorted(dict(counter.counts).items()):
        family.add_metric([value], count)
    return family


def render_metrics(service: Service) -> bytes:
    """Returns the metrics of a service."""
    registry = CollectorRegistry()
    registry.register(_ServiceCollector(service))
    return generate_latest(registry)
