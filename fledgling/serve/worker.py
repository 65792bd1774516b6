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

from fledgling.infer.batch import Decoder, Figures
from fledgling.infer.engine import Engine
from fledgling.infer.sample import Sampling
from fledgling.infer.stream import AnswerStream, Piece, StopText
from fledgling.infer.ticket import Ticket
from fledgling.model.cache import KVCache

GPU_CHUNK = 2048
CHUNK = 256  # tokens of prompts between two steps: on two cores about a tenth of a second for a model of 110M weights


class Full(Exception):
    """The queue is full; try again in `retry_after` seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("the queue is full")
        self.retry_after = retry_after


@dataclass(frozen=True)
class Drawn:
    """One token of an answer: id, log-probability, whether a tool put it there, and the likeliest alternatives."""

    id: int
    logprob: float
    forced: bool
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """What choice `choice` has said since its last delta: text by kind, and the tokens behind it.

    echo: these are the prompt's tokens but the first, scored; they come before anything that is said.
    """

    choice: int
    pieces: tuple[Piece, ...]
    drawn: tuple[Drawn, ...]
    echo: bool = False


@dataclass(frozen=True)
class Done:
    """Choice `choice` has ended: "stop", "length" or "context"; or "error"."""

    choice: int
    reason: str


Event = Delta | Done


@dataclass(frozen=True)
class Job:
    """What to answer: a prompt, `n` times, with one sampling; `stops` are strings that end an answer.

    score: tell how likely the prompt's own tokens are. draws: False where that is all.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    n: int = 1
    stops: tuple[str, ...] = ()
    tools: bool = True
    score: bool = False
    draws: bool = True


class _Choice:
    """One of a job's answers under way: its ticket, and how much of it has been told."""

    def __init__(self, number: int, job: Job, engine: Engine) -> None:
        self.number, self.job = number, job
        self.stream = AnswerStream(engine.tokenizer)
        self.watch = StopText(job.stops)
        self.told = 0
        self.ticket: Ticket | None = None

    def news(self) -> tuple[list[Event], bool]:
        """What is new since the last call, and whether the answer has ended."""
        ticket = self.ticket
        events: list[Event] = []
        if self.job.score and not self.told and (ticket.tokens or ticket.finish):
            events.append(Delta(self.number, (), _scored(ticket), echo=True))
        fresh = range(self.told, len(ticket.tokens))
        self.told = len(ticket.tokens)
        drawn = tuple(
            Drawn(
                ticket.tokens[i],
                ticket.logprobs[i],
                ticket.forced[i],
                tuple(ticket.alternatives[i]) if i < len(ticket.alternatives) else (),
            )
            for i in fresh
        )
        pieces = [piece for token in drawn for piece in self.stream.push(token.id)]
        if ticket.finish:
            pieces += self.stream.finish()
        shown = self._until_stop(pieces, bool(ticket.finish))
        events += [Delta(self.number, tuple(shown), drawn)] if shown or drawn else []
        reason = "stop" if self.watch.stopped else ticket.finish
        return [*events, Done(self.number, reason)] if reason else events, bool(reason)

    def _until_stop(self, pieces: list[Piece], last: bool) -> list[Piece]:
        """The pieces, their prose cut before a stop string; a call of a tool ends what was waiting."""
        shown: list[Piece] = []
        for piece in pieces:
            if self.watch.stopped:
                break
            if piece.kind == "text":
                text = self.watch.push(piece.text)
                shown += [Piece("text", text)] if text else []
            else:
                waiting = self.watch.finish()
                shown += [Piece("text", waiting)] if waiting else []
                shown.append(piece)
        if last and not self.watch.stopped and (waiting := self.watch.finish()):
            shown.append(Piece("text", waiting))
        return shown


def _scored(ticket: Ticket) -> tuple[Drawn, ...]:
    """The tokens of a ticket's prompt, but the first, with what they were found likely."""
    others = ticket.prompt_alternatives or [[]] * len(ticket.prompt_logprobs)
    scored = zip(ticket.prompt[1:], ticket.prompt_logprobs, others, strict=True)
    return tuple(Drawn(token, logprob, False, tuple(likely)) for token, logprob, likely in scored)


@dataclass
class Handle:
    """A submitted job; `cancel` frees its rows at the next step and silences it."""

    job: Job
    emit: Callable[[Event], None]
    choices: list[_Choice] = field(default_factory=list)
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Counters:
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
        rows: int = 32,
        queue: int = 64,
        chunk: int = CHUNK,
        keep: int | None = None,
        lookahead: int = 0,
    ) -> None:
        self.engine, self.rows, self.queue = engine, rows, queue
        self._settings = {
            "chunk": chunk,
            "keep": rows * engine.context if keep is None else keep,
            "lookahead": lookahead,
        }
        self.counters = Counters()
        self.failure: str | None = None
        self._decoder = Decoder(engine, rows, **self._settings)
        self._wake = threading.Condition()
        self._inbox: list[Handle] = []
        self._open: list[Handle] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> int:
        """Jobs waiting or under way."""
        return len(self._inbox) + len(self._open)

    @property
    def figures(self) -> Figures:
        """What the engine shared, read and guessed since it started, or since it last failed."""
        return self._decoder.figures

    @property
    def cache(self) -> KVCache:
        """The engine's blocks of keys and values."""
        return self._decoder.cache

    def submit(self, job: Job, emit: Callable[[Event], None]) -> Handle:
        """Queue a job; raises Full when too many wait."""
        handle = Handle(job, emit)
        with self._wake:
            if self.load >= self.queue:
                self.counters.refused += 1
                raise Full(retry_after=1 + self.load // max(1, self.rows))
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
                self._turn(arrived)
            except Exception as problem:  # one bad step must not end the server: everybody under way is told
                self._fail(problem)
            self.counters.busy_seconds += time.perf_counter() - began

    def _turn(self, arrived: list[Handle]) -> None:
        """Seat the newcomers, let go of who left, decode one token for everybody else and tell them."""
        for handle in arrived:
            for number in range(handle.job.n):
                choice = _Choice(number, handle.job, self.engine)
                job = handle.job
                choice.ticket = self._decoder.add(job.prompt, job.sampling, number, job.tools, job.score, job.draws)
                handle.choices.append(choice)
        for handle in self._open:
            if handle.cancelled:
                self.counters.cancelled += 1
                for choice in handle.choices:
                    self._decoder.cancel(choice.ticket)
                handle.choices = []
        if self._decoder.busy:
            self._decoder.step()
            self.counters.steps += 1
        for handle in self._open:
            for choice in list(handle.choices):
                events, ended = choice.news()
                for event in events:
                    if isinstance(event, Delta) and not event.echo:
                        self.counters.answer_tokens += len(event.drawn)
                    handle.emit(event)
                if ended:
                    self._decoder.cancel(choice.ticket)
                    handle.choices.remove(choice)
        with self._wake:
            self._open = [handle for handle in self._open if handle.choices]

    def _fail(self, problem: Exception) -> None:
        self.failure = f"{type(problem).__name__}: {problem}"
        for handle in self._open:
            for choice in handle.choices:
                handle.emit(Done(choice.number, "error"))
        with self._wake:
            self._open = []
        self._decoder = Decoder(self.engine, self.rows, **self._settings)
