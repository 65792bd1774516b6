"""One thread owns the engine and answers many requests in one batch; everybody else only talks to it.

The one idea: the event loop never waits for a matrix product. A request is put into an inbox, the thread seats it
beside those that are under way (continuous batching), and what it says comes back as events by a callback. Who is
cancelled has left its row before the next step. The queue is bounded: who comes too late is told so at once.

It knows no HTTP: `app.py` does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fledgling.infer.detokenizer import AnswerDetokenizer, ContentPart, StopStringMatcher
from fledgling.infer.engine import Engine
from fledgling.infer.request import Request
from fledgling.infer.sampling import SamplingParams
from fledgling.infer.scheduler import Scheduler, SchedulerStats
from fledgling.model.cache import KVCache

GPU_PREFILL_CHUNK = 2048
CPU_PREFILL_CHUNK = (
    256  # tokens of prompts between two steps: on two cores about a tenth of a second for a model of 110M weights
)


class QueueFull(Exception):
    """The queue is full; try again in `retry_after` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("the queue is full")
        self.retry_after = retry_after


@dataclass(frozen=True)
class GeneratedToken:
    """One token of an answer: id, log-probability, whether a tool put it there, and the likeliest alternatives."""

    id: int
    logprob: float
    forced: bool
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class ChoiceDelta:
    """What choice `choice` has said since its last delta: text by kind, and the tokens behind it.

    echo: these are the prompt's tokens but the first, scored; they come before anything that is said.
    """

    choice: int
    parts: tuple[ContentPart, ...]
    tokens: tuple[GeneratedToken, ...]
    echo: bool = False


@dataclass(frozen=True)
class ChoiceFinished:
    """Choice `choice` has ended: "stop", "length" or "context"; or "error"."""

    choice: int
    finish_reason: str


ChoiceEvent = ChoiceDelta | ChoiceFinished


@dataclass(frozen=True)
class GenerationJob:
    """What to answer: a prompt, `n` times, with one sampling; `stops` are strings that end an answer.

    score: tell how likely the prompt's own tokens are. draws: False where that is all.
    """

    prompt: tuple[int, ...]
    sampling: SamplingParams
    n: int = 1
    stop_strings: tuple[str, ...] = ()
    use_tools: bool = True
    score_prompt: bool = False
    generate: bool = True


class _Choice:
    """One of a job's answers under way: its ticket, and how much of it has been told."""

    def __init__(self, number: int, job: GenerationJob, engine: Engine) -> None:
        self.number, self.job = number, job
        self.stream = AnswerDetokenizer(engine.tokenizer)
        self.stop_matcher = StopStringMatcher(job.stop_strings)
        self.reported = 0
        self.request: Request | None = None

    def poll_events(self) -> tuple[list[ChoiceEvent], bool]:
        """What is new since the last call, and whether the answer has ended."""
        ticket = self.request
        events: list[ChoiceEvent] = []
        if self.job.score_prompt and not self.reported and (ticket.tokens or ticket.finish_reason):
            events.append(ChoiceDelta(self.number, (), _score_tokens(ticket), echo=True))
        fresh = range(self.reported, len(ticket.tokens))
        self.reported = len(ticket.tokens)
        drawn = tuple(
            GeneratedToken(
                ticket.tokens[i],
                ticket.logprobs[i],
                ticket.forced[i],
                tuple(ticket.top_logprobs[i]) if i < len(ticket.top_logprobs) else (),
            )
            for i in fresh
        )
        pieces = [piece for token in drawn for piece in self.stream.push(token.id)]
        if ticket.finish_reason:
            pieces += self.stream.finish()
        shown = self._until_stop(pieces, bool(ticket.finish_reason))
        events += [ChoiceDelta(self.number, tuple(shown), drawn)] if shown or drawn else []
        reason = "stop" if self.stop_matcher.stopped else ticket.finish_reason
        return [*events, ChoiceFinished(self.number, reason)] if reason else events, bool(reason)

    def _until_stop(self, pieces: list[ContentPart], last: bool) -> list[ContentPart]:
        """The pieces, their prose cut before a stop string; a call of a tool ends what was waiting."""
        shown: list[ContentPart] = []
        for piece in pieces:
            if self.stop_matcher.stopped:
                break
            if piece.kind == "text":
                text = self.stop_matcher.push(piece.text)
                shown += [ContentPart("text", text)] if text else []
            else:
                waiting = self.stop_matcher.finish()
                shown += [ContentPart("text", waiting)] if waiting else []
                shown.append(piece)
        if last and not self.stop_matcher.stopped and (waiting := self.stop_matcher.finish()):
            shown.append(ContentPart("text", waiting))
        return shown


def _score_tokens(ticket: Request) -> tuple[GeneratedToken, ...]:
    """The tokens of a ticket's prompt, but the first, with what they were found likely."""
    others = ticket.prompt_top_logprobs or [[]] * len(ticket.prompt_logprobs)
    scored = zip(ticket.prompt[1:], ticket.prompt_logprobs, others, strict=True)
    return tuple(GeneratedToken(token, logprob, False, tuple(likely)) for token, logprob, likely in scored)


@dataclass
class JobHandle:
    """A submitted job; `cancel` frees its rows at the next step and silences it."""

    job: GenerationJob
    emit: Callable[[ChoiceEvent], None]
    choices: list[_Choice] = field(default_factory=list)
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class WorkerCounters:
    """What the server has done since it started; read by /metrics."""

    requests: int = 0
    refused: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    steps: int = 0
    busy_seconds: float = 0.0


class Worker:
    """Answers jobs on a thread of its own, at most `rows` answers at a time, at most `queue` jobs waiting or under way.

    chunk, keep, lookahead: as `Decoder` has them; keep None: as many tokens as the rows can need at most, so that what
    is kept of earlier requests never takes more memory than a full house. `emit` of a job is called on the worker's
    thread, in order, and must not block.
    """

    def __init__(
        self,
        engine: Engine,
        max_batch_size: int = 32,
        max_queue_size: int = 64,
        prefill_chunk: int = CPU_PREFILL_CHUNK,
        prefix_cache_tokens: int | None = None,
        lookahead_tokens: int = 0,
    ) -> None:
        self.engine, self.max_batch_size, self.max_queue_size = engine, max_batch_size, max_queue_size
        self._settings = {
            "prefill_chunk": prefill_chunk,
            "prefix_cache_tokens": max_batch_size * engine.context
            if prefix_cache_tokens is None
            else prefix_cache_tokens,
            "lookahead_tokens": lookahead_tokens,
        }
        self.counters = WorkerCounters()
        self.last_error: str | None = None
        self._scheduler = Scheduler(engine, max_batch_size, **self._settings)
        self._wake = threading.Condition()
        self._inbox: list[JobHandle] = []
        self._open: list[JobHandle] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> int:
        """Jobs waiting or under way."""
        return len(self._inbox) + len(self._open)

    @property
    def stats(self) -> SchedulerStats:
        """What the engine shared, read and guessed since it started, or since it last failed."""
        return self._scheduler.stats

    @property
    def cache(self) -> KVCache:
        """The engine's blocks of keys and values."""
        return self._scheduler.cache

    def submit(self, job: GenerationJob, emit: Callable[[ChoiceEvent], None]) -> JobHandle:
        """Queue a job; raises Full when too many wait."""
        handle = JobHandle(job, emit)
        with self._wake:
            if self.load >= self.max_queue_size:
                self.counters.refused += 1
                raise QueueFull(retry_after=1 + self.load // max(1, self.max_batch_size))
            self._inbox.append(handle)
            self.counters.requests += 1
            self.counters.prompt_tokens += len(job.prompt)
            self._wake.notify()
        return handle

    def close(self) -> None:
        """Stop after the present step; jobs under way get no further events."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._closing or self._inbox or self._open):
                    self._wake.wait()
                if self._closing:
                    return
                arrived, self._inbox = self._inbox, []
                self._open += arrived
            began = time.perf_counter()
            try:
                self._run_step(arrived)
            except Exception as problem:  # one bad step must not end the server: everybody under way is told
                self._fail(problem)
            self.counters.busy_seconds += time.perf_counter() - began

    def _run_step(self, arrived: list[JobHandle]) -> None:
        """Seat the newcomers, let go of who left, decode one token for everybody else and tell them."""
        for handle in arrived:
            for number in range(handle.job.n):
                choice = _Choice(number, handle.job, self.engine)
                job = handle.job
                choice.request = self._scheduler.add_request(
                    job.prompt, job.sampling, number, job.use_tools, job.score_prompt, job.generate
                )
                handle.choices.append(choice)
        for handle in self._open:
            if handle.cancelled:
                self.counters.cancelled += 1
                for choice in handle.choices:
                    self._scheduler.cancel(choice.request)
                handle.choices = []
        if self._scheduler.has_unfinished:
            self._scheduler.step()
            self.counters.steps += 1
        for handle in self._open:
            for choice in list(handle.choices):
                events, ended = choice.poll_events()
                for event in events:
                    if isinstance(event, ChoiceDelta) and not event.echo:
                        self.counters.answer_tokens += len(event.tokens)
                    handle.emit(event)
                if ended:
                    self._scheduler.cancel(choice.request)
                    handle.choices.remove(choice)
        with self._wake:
            self._open = [handle for handle in self._open if handle.choices]

    def _fail(self, problem: Exception) -> None:
        self.last_error = f"{type(problem).__name__}: {problem}"
        for handle in self._open:
            for choice in handle.choices:
                handle.emit(ChoiceFinished(choice.number, "error"))
        with self._wake:
            self._open = []
        self._scheduler = Scheduler(self.engine, self.max_batch_size, **self._settings)
