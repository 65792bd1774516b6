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
STATS = {
    "shared_tokens": "Tokens of prompts that were known already: by another row, or from an earlier request.",
    "read_tokens": "Tokens of prompts that were computed.",
    "chunks": "Chunks of prompts that were read.",
    "drafted": "Tokens guessed ahead.",
    "accepted": "Guessed tokens that held.",
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
        figures, cache = self.worker.stats, self.worker.cache
        for name, text in STATS.items():
            family = CounterMetricFamily(f"fledgling_{name}", text)
            family.add_metric([], getattr(figures, name))
            yield family
        yield GaugeMetricFamily("fledgling_load", "Requests waiting or under way.", self.worker.load)
        rate, held = figures.prefix_hit_rate, cache.used_blocks * cache.block_bytes
        yield GaugeMetricFamily("fledgling_prefix_hit_rate", "Share of prompts' tokens that were known already.", rate)
        yield GaugeMetricFamily(
            "fledgling_lookahead_acceptance", "Share of guesses that held.", figures.acceptance_rate
        )
        yield GaugeMetricFamily("fledgling_cache_bytes", "Keys and values held, of rows and of prefixes.", held)


def render_metrics(worker: Worker) -> bytes:
    """The metrics of a worker as a scrape expects them."""
    registry = CollectorRegistry()
    registry.register(_Collector(worker))
    return generate_latest(registry)
