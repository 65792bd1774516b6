"""The served model with its limits, a parsed request, and what an endpoint is. Values; the worker does the work."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from fledgling.infer.sampling import SamplingParams
from fledgling.serve.extra_fields import FieldCounter
from fledgling.serve.responses import GeneratedChoice
from fledgling.serve.schemas import BadRequest, CommonRequest, CompletionRequest, IgnoringBody
from fledgling.serve.worker import ChoiceEvent, GenerationJob, Worker
from fledgling.text.tokenizer import Tokenizer

MAX_LISTED = 20  # names of models in an error
LATEST = ":latest"  # the tag that Ollama's clients append to a name, also under /v1
SMALLEST_TOP_P = 1e-6  # for 0: the most likely token alone
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def draw_seed() -> int:
    """Returns the seed of a request that gives none."""
    return secrets.randbits(63)


@dataclass(frozen=True)
class Service:
    """A worker, its tokenizer, the model's name, and the server's limits."""

    worker: Worker
    tokenizer: Tokenizer
    model_name: str
    created: int  # Unix time
    api_key: str | None = None  # None: no key is required
    hosts: tuple[str, ...] | None = LOOPBACK  # accepted names in the Host header; None: any
    max_body_bytes: int = 1_000_000
    examples: tuple[str, ...] = ()  # questions that the model was taught to answer, for the page
    origins: tuple[str, ...] = ()  # other sites whose pages may use the server
    ignored_fields: FieldCounter = field(default_factory=FieldCounter)
    changed_turns: FieldCounter = field(default_factory=FieldCounter)

    @property
    def context(self) -> int:
        """The model's context in tokens."""
        return self.worker.engine.context

    def describe_model(self, name: str | None = None) -> dict[str, Any]:
        """Returns the model's entry of /v1/models; raises BadRequest where `name` is not the served model."""
        if name is not None:
            self.check_model_name(name)
        return {
            "id": self.model_name,
            "object": "model",
            "created": self.created,
            "owned_by": "fledgling",
            "max_model_len": self.context,  # vLLM's name of it
            "context_length": self.context,  # OpenRouter's
            "examples": list(self.examples),
        }

    def check_model_name(self, name: str) -> None:
        """Raises BadRequest unless `name` is the served model, or empty."""
        find_service([self], name)

    def check_num_choices(self, count: int) -> None:
        """Raises BadRequest for more choices than the queue holds: they could never be accepted."""
        if count > self.worker.max_queue_size:
            message = f"n: {count} answers are more than the server's queue holds ({self.worker.max_queue_size})"
            raise BadRequest(message, "n")

    def describe_health(self) -> dict[str, Any]:
        """Returns the body of /health: `load` counts answers waiting or running."""
        worker = self.worker
        return {
            "status": "ok",
            "model": self.model_name,
            "load": worker.load,
            "max_queue_size": worker.max_queue_size,
            "max_batch_size": worker.max_batch_size,
        }

    @cached_property
    def max_text_bytes(self) -> int:
        """Returns the largest number of UTF-8 bytes that can fit into the context: that of its longest tokens."""
        return self.context * max(map(len, self.tokenizer.token_bytes))

    def check_prompt_size(self, texts: Iterable[str], num_ids: int = 0, field: str = "messages") -> None:
        """Raises BadRequest where texts and token ids cannot fit into the context, before anything is tokenized.

        The check costs no more than the length of the texts; what passes it may still be too long.

        Args:
            texts, num_ids: the texts of the prompt, and how many token ids it has besides.
            field: of the body, that the error names.
        """
        num_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        if num_bytes > self.max_text_bytes or num_ids >= self.context:
            size = f"{num_ids:,} tokens" if num_ids else f"{num_bytes:,} bytes, which are more tokens than fit,"
            message = f"the prompt has {size} and the model's whole context is {self.context:,} tokens"
            raise BadRequest(message, field, "context_length_exceeded")

    def tokenize_text(self, text: str | list[int], field: str) -> list[int]:
        """Returns a text, or token ids, as ids; raises BadRequest for ids out of range and for control tokens."""
        if isinstance(text, str):
            self.check_prompt_size([text], field=field)
            return self.tokenizer.encode(text)
        self.check_prompt_size((), num_ids=len(text), field=field)
        control = set(self.tokenizer.special_tokens.values())
        invalid = next((i for i in text if not 0 <= i < self.tokenizer.vocab_size or i in control), None)
        if invalid is not None:
            raise BadRequest(f"{invalid} is not the id of a token of text", field)
        return text

    def choose_stop_strings(self, body: CommonRequest, is_constrained: bool) -> tuple[str, ...]:
        """Returns a body's stop strings; none, and counts the field as ignored, where a constraint ends the answer.

        A stop string within JSON would cut it, and clients send their list with every request.
        """
        found = body.stop_strings()
        if is_constrained and found:
            self.ignored_fields.add(["stop"])
            return ()
        return found

    def make_sampling_params(
        self, body: CommonRequest, prompt: Sequence[int], max_new_tokens: int | None, num_top_logprobs: int
    ) -> SamplingParams:
        """Returns the sampling parameters of a body; raises BadRequest for a prompt that fills the context."""
        free_tokens = self.context - len(prompt)
        if free_tokens < 1:
            message = f"the prompt has {len(prompt):,} tokens and the model's whole context is {self.context:,}"
            field = "prompt" if isinstance(body, CompletionRequest) else "messages"
            raise BadRequest(message, field, "context_length_exceeded")
        vocab_size = self.worker.engine.model.config.vocab_size
        defaults = self.tokenizer.sampling_defaults
        return SamplingParams(
            temperature=float(defaults.get("temperature", 1.0) if body.temperature is None else body.temperature),
            top_k=int(defaults.get("top_k", 0)) if body.top_k is None else max(0, body.top_k),
            top_p=max(SMALLEST_TOP_P, float(defaults.get("top_p", 1.0) if body.top_p is None else body.top_p)),
            min_p=float(body.min_p or 0.0),
            max_new_tokens=min(max_new_tokens or free_tokens, free_tokens),
            seed=draw_seed() if body.seed is None else body.seed,
            repetition_penalty=float(body.choose_repetition_penalty() or defaults.get("repetition_penalty", 1.0)),
            logit_bias=body.parse_logit_bias(vocab_size),
            presence_penalty=float(body.presence_penalty or 0.0),
            frequency_penalty=float(body.frequency_penalty or 0.0),
            num_top_logprobs=min(num_top_logprobs, vocab_size),
        )


def find_service(services: Sequence[Service], model: str) -> Service:
    """Returns the service of a model; the first for "". Raises BadRequest for a name that none has.

    A name is known with Ollama's tag too, on every route: clients list the models by /api/tags and ask by /v1.
    """
    names = [service.model_name for service in services]
    for name in (model, model.removesuffix(LATEST)):
        if name in names or not name:
            return services[names.index(name) if name else 0]
    listed = ", ".join(map(repr, names[:MAX_LISTED])) + (" ..." if len(names) > MAX_LISTED else "")
    message = f"no model {model[:80]!r} on this server; it serves {listed}"
    raise BadRequest(message, "model", "model_not_found", status=404)


@dataclass
class ParsedRequest:
    """A valid request: jobs for the worker, and the choices that they generate."""

    jobs: list[GenerationJob]
    stream: bool
    include_usage: bool  # at the end of a stream
    include_logprobs: bool
    echo_prefixes: list[str]  # of each choice: text before the answer (the echoed prompt)
    id: str
    created: int  # Unix time
    body: Any = None  # what an endpoint repeats of its request in the response
    dropped_turns: int = 0  # of the conversation, so that it fits into the context
    choices: list[GeneratedChoice] = field(init=False)
    ignored_fields: list[str] = field(default_factory=list)  # names of fields that change no answer

    def __post_init__(self) -> None:
        self.choices = [GeneratedChoice() for job in self.jobs for _ in range(job.n)]

    @property
    def first_choice_indices(self) -> list[int]:
        """The index of each job's first choice."""
        return [sum(job.n for job in self.jobs[:number]) for number in range(len(self.jobs))]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts, each counted once."""
        return sum(len(job.prompt) for job in self.jobs)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts that were in the cache when their first answer began."""
        firsts = (self.choices[index] for index in self.first_choice_indices)
        return sum(choice.cached_tokens for choice in firsts)

    @property
    def thought_tokens(self) -> int:
        """Tokens of all thoughts."""
        return sum(choice.thought_tokens for choice in self.choices)

    @property
    def completion_tokens(self) -> int:
        """Tokens of all answers so far."""
        return sum(len(choice.tokens) for choice in self.choices)


class ResponseChunks(Protocol):
    """The chunks of a streamed response, in order: `start`, `chunks_of_event` for each event, `end`."""

    def start(self) -> Iterator[dict[str, Any]]:
        """Yields the chunks before the first event."""

    def chunks_of_event(self, choice: int, event: ChoiceEvent) -> Iterator[dict[str, Any]]:
        """Yields the chunks of one event."""

    def end(self) -> Iterator[dict[str, Any]]:
        """Yields the usage where it was requested."""


@dataclass(frozen=True)
class StreamForm:
    """How the chunks of a stream are written: as server-sent events, or a line of JSON each."""

    write: Callable[[dict[str, Any]], str]
    last: str = ""
    media_type: str = "text/event-stream"


def _write_data(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


def _write_event(chunk: dict[str, Any]) -> str:
    return f"event: {chunk.get('type', 'error')}\n{_write_data(chunk)}"


def _write_line(chunk: dict[str, Any]) -> str:
    return json.dumps(chunk, ensure_ascii=False) + "\n"


DATA_STREAM = StreamForm(_write_data, "data: [DONE]\n\n")  # OpenAI's completions
EVENT_STREAM = StreamForm(_write_event)  # named events: OpenAI's responses, Anthropic's messages
LINE_STREAM = StreamForm(_write_line, media_type="application/x-ndjson")  # Ollama's


@dataclass(frozen=True)
class Endpoint:
    """One kind of completion: its body, and how a request and its response are made (chat.py, completion.py)."""

    body: type[IgnoringBody]
    parse_request: Callable[[Service, Any], ParsedRequest]  # raises BadRequest or UserError
    build_response: Callable[[Service, ParsedRequest], dict[str, Any]]
    chunks: Callable[[Service, ParsedRequest], ResponseChunks]
    stream: StreamForm = DATA_STREAM
