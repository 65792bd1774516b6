"""Tasks share the worker's time: however many are queued, an answer is little slower."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from fledgling.infer.sampling import SamplingParams
from fledgling.serve import embeddings
from fledgling.serve.embeddings import embed_tokens, group_texts
from fledgling.serve.tasks import TASK_SHARE, TaskHandle, TaskQueue
from fledgling.serve.worker import ChoiceFinished, GenerationJob, Worker
from tests.waits import WAIT_SECONDS


def drain(pieces) -> tuple[int, object]:
    """Returns the number of pieces, and the result."""
    count = 1
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return count, end.value
        count += 1


class Clock:
    """A clock that a task moves."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize("piece_seconds", [0.001, 0.02, 0.3])
def test_tasks_take_their_share_of_the_time_of_steps_and_all_of_idle_time(piece_seconds):
    clock = Clock()

    def run(engine):
        while True:
            clock.seconds += piece_seconds
            yield

    queue = TaskQueue(clock)
    queue.tasks.append(TaskHandle(run, lambda value, error: None))
    assert queue.is_due(is_idle=True)
    queue.compute_piece(None)
    start, steps = clock.seconds, 3000
    for _ in range(steps):
        if queue.is_due(is_idle=False):
            queue.compute_piece(None)
        clock.seconds += 0.01
        queue.add_step(0.01)
    taken = clock.seconds - start - steps * 0.01
    assert taken <= TASK_SHARE * steps * 0.01
    assert taken >= 0.5 * TASK_SHARE * min(steps * 0.01, steps * piece_seconds)  # and they are never starved
    assert queue.is_due(is_idle=True)


def test_an_answer_does_not_wait_for_a_piece_in_each_of_its_steps(random_engine):
    worker, steps, done = Worker(random_engine, 4, 64), 60, threading.Event()
    pieces: list[int] = []

    def run(engine):
        while not done.is_set():
            pieces.append(worker.counters.steps)
            time.sleep(0.01)
            yield

    def emit(event) -> None:
        if isinstance(event, ChoiceFinished):
            done.set()

    for _ in range(40):
        worker.submit_task(run, lambda value, error: None)
    sampling = SamplingParams(temperature=0, max_new_tokens=steps, logit_bias=((97, 100.0),))  # it ends at the limit
    worker.submit(GenerationJob((random_engine.tokenizer.bos,), sampling), emit)
    assert done.wait(WAIT_SECONDS)
    worker.close()
    assert worker.counters.steps >= steps
    assert sum(step > 0 for step in pieces) < steps / 2


def test_a_text_is_embedded_in_pieces_with_the_vector_of_the_whole(random_engine, monkeypatch):
    ids = [1 + number % 250 for number in range(90)]
    hidden = random_engine.forward(torch.tensor([[random_engine.tokenizer.bos, *ids]]))[0, 1:].float()
    expected = torch.nn.functional.normalize(hidden.mean(0), dim=0)
    for size, count in ((64, 2), (7, 13), (1, 91), (91, 1), (500, 1)):
        monkeypatch.setattr(embeddings, "CPU_PIECE_TOKENS", size)
        pieces, (vector,) = drain(embed_tokens(random_engine, [ids]))
        assert pieces == count
        torch.testing.assert_close(torch.tensor(vector), expected, rtol=1e-4, atol=1e-5)


def test_short_texts_of_similar_length_share_a_piece_and_have_the_vectors_of_each_alone(random_engine):
    texts = [[1 + (number * 7 + place) % 250 for place in range(3 + number * 5 % 17)] for number in range(40)]
    lengths, size = [len(ids) + 1 for ids in [*texts, range(90)]], embeddings.CPU_PIECE_TOKENS
    groups = group_texts(lengths, size)
    assert sorted(index for group in groups for index in group) == list(range(41))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= size for group in groups)
    assert len(groups) < 41 / 3 and [40] in groups
    assert group_texts([], size) == [] and group_texts([size, 1, size], size) == [[1], [0], [2]]
    for group in groups[:-1]:
        pieces, vectors = drain(embed_tokens(random_engine, [texts[index] for index in group]))
        alone = [drain(embed_tokens(random_engine, [texts[index]]))[1][0] for index in group]
        assert pieces == 1
        torch.testing.assert_close(torch.tensor(vectors), torch.tensor(alone), rtol=0, atol=1e-5)
    _, vectors = drain(embed_tokens(random_engine, texts))  # one token of each at a time, the short ones end first
    expected = [drain(embed_tokens(random_engine, [ids]))[1][0] for ids in texts]
    torch.testing.assert_close(torch.tensor(vectors), torch.tensor(expected), rtol=0, atol=1e-5)
