"""Request bodies in OpenAI's format, validated completely before anything is tokenized or queued.

A field is honored or rejected by name, never silently ignored: what would change the answer and is not supported (tool
schemas, frequency penalties, response formats) is rejected when it requests anything; what only describes the caller
(`user`, `metadata`) is accepted and not stored. The OpenAPI description is generated from these classes.

Every field has a bound on its size, so that no request costs more than its length suggests; the text of messages and
prompts is bounded by the model's context (service.py). `x-bounded-by` marks those in the description.

Fields beyond OpenAI's: `top_k`, `min_p`, `repetition_penalty`, `calculator`, `truncation` (as in OpenAI's Responses
API); and `parts` of an assistant's message, the answer as it was returned, tool calls included.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)

from fledgling.serve.json_body import MAX_OBJECT_KEYS, InvalidJSON, parse_json, shorten_text

MAX_CHOICES = 16
MAX_STOP_STRINGS = 4
MAX_STOP_CHARS = 256
MAX_MESSAGES = 512
MAX_PARTS = 256  # of one message
MAX_NAME_CHARS = 256
MAX_PROMPT_IDS = 1 << 17  # of one prompt; the model's context is checked later
MAX_UNUSED_CHARS = 16_384  # of the JSON of a field that is accepted and not used
MAX_INTEGER = 2**63 - 1


def _check_unused(value: Any) -> Any:
    if isinstance(value, str | dict | list):
        try:
            size = len(json.dumps(value))
        except RecursionError:
            size = MAX_UNUSED_CHARS + 1
        if size > MAX_UNUSED_CHARS:
            raise ValueError(f"expected at most {MAX_UNUSED_CHARS:,} characters of JSON")
    return value


Number = StrictInt | StrictFloat
Unused = Annotated[
    Any,
    AfterValidator(_check_unused),
    Field(description="Accepted and not used.", json_schema_extra={"x-unused": True}),
]
ContextText = Annotated[StrictStr, Field(json_schema_extra={"x-bounded-by": "the model's context"})]
Name = Annotated[StrictStr, Field(max_length=MAX_NAME_CHARS)]
StopString = Annotated[StrictStr, Field(max_length=MAX_STOP_CHARS)]
TokenCount = Annotated[StrictInt, Field(ge=1, le=MAX_INTEGER)]
PromptIds = Annotated[list[StrictInt], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPT_IDS)]


class BadRequest(Exception):
    """An invalid request: the message, the field (`param`), OpenAI's error code, the HTTP status, and the seconds after
    which the client may try again."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        message = message.encode("utf-8", "backslashreplace").decode("utf-8")  # a client may send lone surrogates
        self.message, self.param, self.code, self.status, self.retry_after = message, param, code, status, retry_after


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Part(_Body):
    """A part of a message: text, or in an assistant's message a tool call or its output."""

    type: Literal["text", "python", "output"]
    text: ContextText


Parts = Annotated[list[Part], Field(fail_fast=True, max_length=MAX_PARTS)]


class Message(_Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: ContextText | Parts | None = None
    parts: Parts | None = None
    name: Unused = None
    refusal: None = None

    def texts(self) -> Iterator[str]:
        """Yields all texts of the message."""
        if isinstance(self.content, str):
            yield self.content
        else:
            yield from (part.text for part in self.content or ())
        yield from (part.text for part in self.parts or ())

    def to_conversation_message(self) -> dict[str, Any]:
        """Returns the message in the format of `fledgling.text.conversation`; raises BadRequest without content."""
        role = "system" if self.role == "developer" else self.role
        content = self.parts if self.parts and role == "assistant" else self.content
        if content is None:
            raise BadRequest(f"a message of the {self.role} has no content", "messages")
        return {"role": role, "content": content if isinstance(content, str) else [p.model_dump() for p in content]}


class StreamOptions(_Body):
    """Options of a stream."""

    include_usage: StrictBool = False
    include_obfuscation: Unused = None


class TextFormat(_Body):
    """The only response format that is supported."""

    type: Literal["text"]


class CommonRequest(_Body):
    """The fields of both kinds of completion."""

    model: Name = ""
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.1, le=10)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: StopString | Annotated[list[StopString], Field(fail_fast=True, max_length=MAX_STOP_STRINGS)] | None = None
    seed: Annotated[StrictInt, Field(ge=-MAX_INTEGER - 1, le=MAX_INTEGER)] | None = None
    logit_bias: (
        Annotated[
            dict[str, Annotated[Number, Field(ge=-100, le=100)]],
            Field(max_length=MAX_OBJECT_KEYS, description="Keys are token ids, written as JSON writes an integer."),
        ]
        | None
    ) = None
    presence_penalty: Annotated[Number, Field(ge=0, le=0, description="Only 0: use repetition_penalty.")] | None = None
    frequency_penalty: Annotated[Number, Field(ge=0, le=0, description="Only 0: use repetition_penalty.")] | None = None
    user: Unused = None

    def parse_logit_bias(self, vocab_size: int) -> tuple[tuple[int, float], ...]:
        """Returns logit_bias as (token id, bias); raises BadRequest for a key that is not the one name of a token."""
        pairs = []
        for key, value in (self.logit_bias or {}).items():
            token = int(key) if key.isascii() and key.isdigit() and len(key) <= 10 else -1
            if not 0 <= token < vocab_size or key != str(token):
                name = f"; write {token}" if 0 <= token < vocab_size else ""
                expected = f"token ids from 0 to {vocab_size - 1} without leading zeros{name}"
                raise BadRequest(f"logit_bias has the key {shorten_text(key)!r}; expected {expected}", "logit_bias")
            pairs.append((token, float(value)))
        return tuple(pairs)

    def stop_strings(self) -> tuple[str, ...]:
        """Returns the stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(CommonRequest):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    calculator: StrictBool = True
    truncation: Literal["auto", "disabled"] | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True, max_length=4)] | None = None
    tools: (
        Annotated[list[Any], Field(max_length=0, description="Only empty: the tools are the server's own.")] | None
    ) = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: Unused = None
    metadata: Unused = None
    store: Unused = None
    service_tier: Unused = None
    safety_identifier: Unused = None
    prompt_cache_key: Unused = None


class CompletionRequest(CommonRequest):
    """Body of POST /v1/completions; with echo, logprobs and max_tokens = 0 it only scores the prompt."""

    prompt: (
        ContextText
        | Annotated[list[ContextText], Field(fail_fast=True, min_length=1, max_length=MAX_CHOICES)]
        | PromptIds
        | Annotated[list[PromptIds], Field(fail_fast=True, min_length=1, max_length=MAX_CHOICES)]
    )
    max_tokens: Annotated[StrictInt, Field(ge=0, le=MAX_INTEGER)] | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=5)] | None = None
    echo: StrictBool | None = None
    best_of: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] | None = None
    suffix: None = None

    def prompt_list(self) -> list[str | list[int]]:
        """Returns the prompts, one or several, each as text or token ids."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else list(prompt)


def parse_body(kind: type[CommonRequest], body: bytes) -> Any:
    """Parses and validates a body; raises BadRequest that names the first invalid field and what was expected."""
    try:
        return kind.model_validate(parse_json(body))
    except InvalidJSON as error:
        raise BadRequest(f"the body: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        steps = (shorten_text(str(step)) for step in first["loc"] if not _is_union_branch(step))
        field = ".".join(steps) or None
        reason = "no such parameter" if first["type"] == "extra_forbidden" else first["msg"]
        raise BadRequest(f"{field or 'the body'}: {reason}", field) from None


def _is_union_branch(step: object) -> bool:
    """Whether a step of pydantic's error location names a branch of a union, not a field of the body."""
    return isinstance(step, str) and (any(mark in step for mark in "[(-") or step in ("str", "int", "float"))
