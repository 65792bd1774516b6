"""What is served and within which limits, and a request once it has been understood. Values; nothing runs here."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fledgling.infer.sampling import SamplingParams
from fledgling.serve.responses import GeneratedChoice
from fledgling.serve.schemas import BadRequest, CommonRequest
from fledgling.serve.worker import GenerationJob, Worker
from fledgling.text.tokenizer import Tokenizer

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Service:
    """A worker, its tokenizer, the model's name, and the limits.

    key: None serves without one, on loopback only. hosts: names by which requests may address the server, None for any
    (a key is then what protects it). body_bytes: the largest body. created: Unix time of the model.
    """

    worker: Worker
    tokenizer: Tokenizer
    model_name: str
    created: int
    api_key: str | None = None
    hosts: tuple[str, ...] | None = LOOPBACK
    max_body_bytes: int = 1_000_000

    @property
    def context(self) -> int:
        """The model's context in tokens."""
        return self.worker.engine.context

    def describe_model(self, name: str | None = None) -> dict[str, Any]:
        """The model as /v1/models lists it; raises BadRequest for another name."""
        if name is not None:
            self.check_model_name(name)
        return {"id": self.model_name, "object": "model", "created": self.created, "owned_by": "fledgling"}

    def check_model_name(self, name: str) -> None:
        """Raise BadRequest unless `name` is the served model, or empty."""
        if name not in ("", self.model_name):
            message = f"no model {name[:80]!r} here; there is {self.model_name!r}"
            raise BadRequest(message, "model", "model_not_found", status=404)

    def describe_health(self) -> dict[str, Any]:
        """Alive, and how much is going on."""
        worker = self.worker
        return {
            "status": "ok",
            "model": self.model_name,
            "load": worker.load,
            "max_queue_size": worker.max_queue_size,
            "max_batch_size": worker.max_batch_size,
        }

    def make_sampling_params(
        self, body: CommonRequest, prompt: Sequence[int], max_tokens: int | None, alternatives: int
    ) -> SamplingParams:
        """How to answer; raises BadRequest for a prompt that leaves no room for an answer."""
        room = self.context - len(prompt)
        if room < 1:
            message = f"the prompt has {len(prompt):,} tokens and the model's whole context is {self.context:,}"
            raise BadRequest(message, "messages", "context_length_exceeded")
        vocabulary = self.worker.engine.model.config.vocab_size
        return SamplingParams(
            temperature=1.0 if body.temperature is None else float(body.temperature),
            top_k=body.top_k or 0,
            top_p=1.0 if body.top_p is None else float(body.top_p),
            min_p=float(body.min_p or 0.0),
            max_new_tokens=min(max_tokens or room, room),
            seed=secrets.randbits(63) if body.seed is None else body.seed,
            repetition_penalty=float(body.repetition_penalty or 1.0),
            logit_bias=body.parse_logit_bias(vocabulary),
            num_top_logprobs=min(alternatives, vocabulary),
        )


@dataclass
class ParsedRequest:
    """A request that was understood: jobs for the worker, and the answers that are to come, one a choice."""

    jobs: list[GenerationJob]
    stream: bool
    include_usage: bool  # a stream ends with the usage
    include_logprobs: bool
    echo_prefixes: list[str]  # of each choice: text that is sent before the answer (echo)
    id: str
    created: int
    choices: list[GeneratedChoice] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.choices = [GeneratedChoice() for job in self.jobs for _ in range(job.n)]

    @property
    def first_choice_indices(self) -> list[int]:
        """The number of each job's first choice."""
        return [sum(job.n for job in self.jobs[:place]) for place in range(len(self.jobs))]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts, each counted once."""
        return sum(len(job.prompt) for job in self.jobs)

    @property
    def completion_tokens(self) -> int:
        """Tokens of all answers so far."""
        return sum(len(answer.tokens) for answer in self.choices)
