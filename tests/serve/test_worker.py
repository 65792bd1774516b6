"""The worker's queue: answers and tasks count, and a task's exception is its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from fledgling.infer.sampling import SamplingParams
from fledgling.serve.worker import GenerationJob, QueueFull, Worker
from tests.waits import WAIT_SECONDS


@pytest.fixture
def blocked_worker(random_engine):
    """A worker of at most 8 answers whose thread waits in a task, and the event that lets it continue."""
    worker, started, release = Worker(random_engine, 4, 8), threading.Event(), threading.Event()

    def wait(engine) -> Iterator[None]:
        started.set()
        release.wait(WAIT_SECONDS)
        yield

    worker.submit_task(wait, lambda value, error: None)
    assert started.wait(WAIT_SECONDS)
    yield worker, release
    release.set()
    worker.close()


def compute(function):
    """A task of one piece that returns what a function does."""

    def run(engine):
        return function(engine)
        yield

    return run


def make_job(random_engine, n: int) -> GenerationJob:
    return GenerationJob((random_engine.tokenizer.bos,), SamplingParams(max_new_tokens=2), n)


def test_the_queue_counts_answers_and_not_requests(blocked_worker, random_engine):
    worker, release = blocked_worker
    assert worker.load == 1
    handle = worker.submit(make_job(random_engine, 5), lambda event: None)
    assert worker.load == 6
    with pytest.raises(QueueFull):
        worker.submit(make_job(random_engine, 3), lambda event: None)
    done = threading.Semaphore(0)
    worker.submit(make_job(random_engine, 2), lambda event: done.release())
    assert worker.load == 8 and worker.counters.rejected == 1
    with pytest.raises(QueueFull):
        worker.submit_task(compute(lambda engine: None), lambda value, error: None)
    handle.cancel()
    release.set()
    worker.close()
    assert worker.last_error is None


def test_the_result_of_a_task_or_its_exception_is_delivered(blocked_worker):
    worker, release = blocked_worker
    results, done = [], threading.Semaphore(0)

    def emit(value, error) -> None:
        results.append((value, type(error)))
        done.release()

    worker.submit_task(compute(lambda engine: engine.context), emit)
    worker.submit_task(compute(lambda engine: 1 / 0), emit)
    worker.submit_task(compute(lambda engine: "never"), emit).cancel()
    worker.submit_task(compute(lambda engine: "after"), emit)
    release.set()
    for _ in range(3):
        assert done.acquire(timeout=WAIT_SECONDS)
    assert results == [(96, type(None)), (None, ZeroDivisionError), ("after", type(None))]
    assert "ZeroDivisionError" in worker.last_error
