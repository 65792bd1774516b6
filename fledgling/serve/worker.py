"""The worker: one thread that owns the engine and generates for many requests in one batch.

The event loop never waits for a matrix product. `Worker.submit` puts a job into an inbox; the thread adds it to the
requests that are already running (continuous batching) and reports progress as events by a callback. A cancelled job
frees its rows before the next step. The queue is bounded: a job beyond its limit is rejected at once.

HTTP is app.py's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fledgling.infer.detokenizer import AnswerDetokenizer, ContentPart, StopStringMatcher, ThoughtSplitter
from fledgling.infer.engine import Engine, GeneratedToken
from fledgling.infer.grammar import Grammar
from fledgling.infer.request import Request
from fledgling.infer.sampling import SamplingParams
from fledgling.infer.scheduler import Scheduler, SchedulerStats
from fledgling.model.cache import KVCache
from fledgling.serve.tasks import Pieces, TaskHandle, TaskQueue

GPU_PREFILL_CHUNK = 2048
CPU_PREFILL_CHUNK = 256  # prompt tokens a step: about 0.1 s on two cores for a model of 110M parameters


class QueueFull(Exception):
    """The queue is full; the client may try again in `retry_after` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("the queue is full")
        self.retry_after = retry_after


@dataclass(frozen=True)
class ChoiceDelta:
    """What a choice has generated since its last delta.

    With `echo`, `tokens` are the scored tokens of the prompt except for the first; such a delta precedes all others.
    """

    choice: int
    parts: tuple[ContentPart, ...]
    tokens: tuple[GeneratedToken, ...]
    echo: bool = False


@dataclass(frozen=True)
class ChoiceFinished:
    """A choice has ended ("stop", "length", "context") or failed ("constraint": see `Request`; "error": the engine)."""

    choice: int
    finish_reason: str
    cached_tokens: int = 0  # of the prompt


ChoiceEvent = ChoiceDelta | ChoiceFinished


@dataclass(frozen=True)
class GenerationJob:
    """A prompt that is answered `n` times with the same sampling parameters."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    n: int = 1
    stop_strings: tuple[str, ...] = ()
    tools: bool = True  # let the model call the calculator
    score_prompt: bool = False  # report the log-probabilities of the prompt's tokens
    generate: bool = True  # False: only score the prompt
    grammar: Grammar | None = None  # that every answer obeys
    client_calls: bool = False  # calls in the form of a client's tools are not run here
    has_thoughts: bool = True  # a thought at the answer's start is a part of its own; not where a text is continued
    begins_thought: bool = False  # the prompt ends with the start of a thought


class _Choice:
    """One answer of a job: its request, and how many of its tokens have been reported."""

    def __init__(self, number: int, job: GenerationJob, request: Request, engine: Engine) -> None:
        self.number, self.job, self.request = number, job, request
        self.detokenizer = AnswerDetokenizer(engine.tokenizer)
        self.stop_matcher = StopStringMatcher(job.stop_strings)
        self.thoughts = ThoughtSplitter(job.begins_thought)
        self.reported = 0

    def poll_events(self) -> tuple[list[ChoiceEvent], bool]:
        """Returns the events since the last call, and whether the answer has ended."""
        request, start = self.request, self.reported
        events: list[ChoiceEvent] = []
        if self.job.score_prompt and not start and (request.tokens or request.finish_reason):
            events.append(ChoiceDelta(self.number, (), _prompt_tokens(request), echo=True))
        self.reported = len(request.tokens)
        tokens = tuple(
            GeneratedToken(
                request.tokens[i],
                request.logprobs[i],
                request.forced[i],
                tuple(request.top_logprobs[i]) if i < len(request.top_logprobs) else (),
            )
            for i in range(start, self.reported)
        )
        parts = [part for token in tokens for part in self.detokenizer.push(token.id)]
        if request.finish_reason:
            parts += self.detokenizer.finish()
        parts = self._cut_at_stop_string(parts, bool(request.finish_reason))
        if self.job.has_thoughts:
            parts = self.thoughts.split_parts(parts, bool(request.finish_reason) or self.stop_matcher.stopped)
        if parts or tokens:
            events.append(ChoiceDelta(self.number, tuple(parts), tokens))
        reason = "stop" if self.stop_matcher.stopped else request.finish_reason
        if reason:
            events.append(ChoiceFinished(self.number, reason, request.cached_tokens))
        return events, bool(reason)

    def _cut_at_stop_string(self, parts: list[ContentPart], last: bool) -> list[ContentPart]:
        """Returns the parts before a stop string in their prose; a tool call releases prose that was held back."""
        kept: list[ContentPart] = []
        for part in parts:
            if self.stop_matcher.stopped:
                break
            text = self.stop_matcher.push(part.text) if part.kind == "text" else self.stop_matcher.finish()
            kept += [ContentPart("text", text)] if text else []
            kept += [part] if part.kind != "text" else []
        if last and not self.stop_matcher.stopped and (text := self.stop_matcher.finish()):
            kept.append(ContentPart("text", text))
        return kept


def _prompt_tokens(request: Request) -> tuple[GeneratedToken, ...]:
    """Returns the scored tokens of a request's prompt, except for the first."""
    top: list = request.prompt_top_logprobs or [()] * len(request.prompt_logprobs)
    scored = zip(request.prompt[1:], request.prompt_logprobs, top, strict=True)
    return tuple(GeneratedToken(token, logprob, False, tuple(likely)) for token, logprob, likely in scored)


@dataclass
class JobHandle:
    """A submitted job. `cancel` frees its rows at the next step and stops its events."""

    job: GenerationJob
    emit: Callable[[ChoiceEvent], None]
    choices: list[_Choice] = field(default_factory=list)
    cancelled: bool = False
    num_unfinished: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_unfinished = self.job.n

    def cancel(self) -> None:
        """Requests the cancellation, from any thread."""
        self.cancelled = True


@dataclass
class WorkerCounters:
    """Counters since the server started, exported by /metrics."""

    requests: int = 0
    rejected: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    steps: int = 0
    busy_seconds: float = 0.0


class Worker:
    """Runs generation jobs on a thread of its own.

    Args:
        engine: used by the worker's thread alone from now on.
        max_batch_size: answers that are decoded at once.
        max_queue_size: answers waiting or running before `submit` raises QueueFull.
        prefill_chunk, num_speculative_tokens: see `Scheduler`.
        prefix_cache_tokens: see `Scheduler`; None: as many tokens as the rows can hold at most, so that cached prefixes
            never take more memory than a full batch.
    """

    def __init__(
        self,
        engine: Engine,
        max_batch_size: int = 32,
        max_queue_size: int = 64,
        prefill_chunk: int = CPU_PREFILL_CHUNK,
        prefix_cache_tokens: int | None = None,
        num_speculative_tokens: int = 0,
    ) -> None:
        self.engine, self.max_batch_size, self.max_queue_size = engine, max_batch_size, max_queue_size
        self.prefill_chunk, self.num_speculative_tokens = prefill_chunk, num_speculative_tokens
        self.prefix_cache_tokens = (
            max_batch_size * engine.context if prefix_cache_tokens is None else prefix_cache_tokens
        )
        self.counters = WorkerCounters()
        self.last_error: str | None = None
        self._scheduler = self._make_scheduler()
        self._wake = threading.Condition()
        self._inbox: list[JobHandle] = []
        self._active: list[JobHandle] = []
        self._task_queue = TaskQueue()
        self._tasks = self._task_queue.tasks
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> int:
        """Answers and tasks waiting or running: a job with n = 16 is sixteen."""
        tasks = sum(not task.cancelled for task in list(self._tasks))
        return tasks + sum(handle.num_unfinished for handle in [*self._inbox, *self._active])

    @property
    def stats(self) -> SchedulerStats:
        """The scheduler's counters since the start, or since the engine last failed."""
        return self._scheduler.stats

    @property
    def cache(self) -> KVCache:
        """The scheduler's KV cache."""
        return self._scheduler.cache

    def submit(self, job: GenerationJob, emit: Callable[[ChoiceEvent], None]) -> JobHandle:
        """Queues a job.

        Args:
            job: what to generate.
            emit: called with each event, in order, on the worker's thread; it must not block.

        Raises:
            QueueFull: with this job, more than `max_queue_size` answers would be waiting or running.
        """
        handle = JobHandle(job, emit)
        with self._wake:
            if self.load + job.n > self.max_queue_size:
                self.counters.rejected += 1
                raise QueueFull(retry_after=1 + self.load // max(1, self.max_batch_size))
            self._inbox.append(handle)
            self.counters.requests += 1
            self.counters.prompt_tokens += len(job.prompt)
            self._wake.notify()
        return handle

    def submit_task(self, run: Callable[[Engine], Pieces], emit: Callable[[Any, Exception | None], None]) -> TaskHandle:
        """Queues a computation with the engine; it counts as one answer.

        Args:
            run: returns a generator that computes a short piece for each `next`, on the worker's thread between two
                steps of the running requests (tasks.py), and then returns the result.
            emit: called there with the result, or with None and the exception; it must not block.

        Raises:
            QueueFull: `max_queue_size` answers are waiting or running.
        """
        handle = TaskHandle(run, emit)
        with self._wake:
            if self.load >= self.max_queue_size:
                self.counters.rejected += 1
                raise QueueFull(retry_after=1 + self.load // max(1, self.max_batch_size))
            self._tasks.append(handle)
            self.counters.requests += 1
            self._wake.notify()
        return handle

    def close(self) -> None:
        """Stops the thread after the current step; running jobs get no further events."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _make_scheduler(self) -> Scheduler:
        return self.engine.make_scheduler(
            self.max_batch_size, self.prefill_chunk, self.prefix_cache_tokens, self.num_speculative_tokens
        )

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._closing or self._inbox or self._active or self._tasks):
                    self._wake.wait()
                if self._closing:
                    return
                arrived, self._inbox = self._inbox, []
                self._active += arrived
            start = time.perf_counter()
            try:
                self._run_task()
                self._run_step(arrived)
            except Exception as error:  # one failed step must not end the server: all running jobs get an error event
                self._fail(error)
            self.counters.busy_seconds += time.perf_counter() - start

    def _run_task(self) -> None:
        """Computes a piece of the oldest task where tasks may take the time; its exception is its own result."""
        if not self._task_queue.is_due(is_idle=not self._active):
            return
        ended, problem = True, None
        try:
            ended, problem = self._task_queue.compute_piece(self.engine)
        finally:
            if problem is not None:
                self.last_error = f"{type(problem).__name__}: {problem}"
            if ended:  # until then it counts
                with self._wake:
                    self._tasks.popleft()

    def _run_step(self, arrived: list[JobHandle]) -> None:
        """Adds new jobs, cancels those whose client has disconnected, runs one scheduler step and emits its events."""
        for handle in arrived:
            job = handle.job
            for number in range(job.n):
                request = self.engine.make_request(
                    job.prompt,
                    job.sampling,
                    number,
                    job.tools,
                    job.score_prompt,
                    job.generate,
                    job.grammar,
                    job.client_calls,
                )
                self._scheduler.add_request(request)
                handle.choices.append(_Choice(number, job, request, self.engine))
        for handle in self._active:
            if handle.cancelled:
                self.counters.cancelled += 1
                for choice in handle.choices:
                    self._scheduler.cancel(choice.request)
                handle.choices, handle.num_unfinished = [], 0
        if self._scheduler.has_unfinished:
            start = time.perf_counter()
            self._scheduler.step()
            self._task_queue.add_step(time.perf_counter() - start)
            self.counters.steps += 1
        for handle in self._active:
            for choice in list(handle.choices):
                events, ended = choice.poll_events()
                for event in events:
                    if isinstance(event, ChoiceDelta) and not event.echo:
                        self.counters.completion_tokens += len(event.tokens)
                    handle.emit(event)
                if ended:
                    self._scheduler.cancel(choice.request)
                    handle.choices.remove(choice)
                    handle.num_unfinished -= 1
        with self._wake:
            self._active = [handle for handle in self._active if handle.choices]

    def _fail(self, error: Exception) -> None:
        """Ends all running jobs with an error event and starts with an empty scheduler."""
        self.last_error = f"{type(error).__name__}: {error}"
        for handle in self._active:
            for choice in handle.choices:
                handle.emit(ChoiceFinished(choice.number, "error"))
        with self._wake:
            self._active = []
        self._scheduler = self._make_scheduler()
