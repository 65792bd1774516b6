"""Request bodies in OpenAI's format, validated completely before anything is tokenized or queued.

What changes an answer is honored or rejected by name; what does not is ignored and counted (extra_fields.py): `user`,
`metadata`, what a client adds to our own messages before it sends them back. The OpenAPI description is generated from
these classes.

Every field has a bound on its size, so that no request costs more than its length suggests; the text of messages and
prompts is bounded by the model's context (service.py). `x-bounded-by` marks those in the description.

Fields beyond OpenAI's: `top_k`, `min_p`, `repetition_penalty`, `calculator`, `truncation` (as in OpenAI's Responses
API), vLLM's `structured_outputs` and `guided_*`, llama.cpp's `grammar`; and `parts` of an assistant's message, the
answer as it was returned, calls of the model's own tool included.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)

from fledgling.infer.sampling import MAX_TEMPERATURE
from fledgling.serve.extra_fields import UnsupportedField, list_ignored
from fledgling.serve.field_errors import describe_invalid_field
from fledgling.serve.json_body import MAX_OBJECT_KEYS, InvalidJSON, parse_json, shorten_text

MAX_CHOICES = 16
MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 256
MAX_STOP_CHARS_IN_ALL = 4096
MAX_MESSAGES = 512
MAX_PARTS = 256  # of one message
MAX_NAME_CHARS = 256
MAX_PROMPT_IDS = 1 << 17  # of one prompt; the model's context is checked later
MAX_TOOLS = 64
MAX_TOOL_CALLS = 64  # of one message
MAX_SCHEMA_CHARS = 32_768  # of the JSON of a schema
MAX_GRAMMAR_CHARS = 16_384  # of a pattern or grammar
MAX_CHOICE_TEXTS = 256  # of guided_choice
MAX_INTEGER = 2**63 - 1


def _check_schema_size(value: Any) -> Any:
    try:
        size = len(json.dumps(value))
    except RecursionError:
        size = MAX_SCHEMA_CHARS + 1
    if size > MAX_SCHEMA_CHARS:
        raise ValueError(f"expected at most {MAX_SCHEMA_CHARS:,} characters of JSON")
    return value


def _read_no_limit(value: Any) -> Any:
    return None if type(value) is int and value == -1 else value  # as llama.cpp and LM Studio write it


def _read_whole_number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # 8.0, as JSON Schema's integer


def _write_arguments(value: Any) -> Any:
    """Returns arguments that are an object, as Ollama's histories have them, as OpenAI's text."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


def _check_stop_size(value: list[str]) -> list[str]:
    count = sum(map(len, value))
    if count > MAX_STOP_CHARS_IN_ALL:
        raise ValueError(f"at most {MAX_STOP_CHARS_IN_ALL:,} characters in all, {count:,} given")
    return value


Number = StrictInt | StrictFloat
ContextText = Annotated[StrictStr, Field(json_schema_extra={"x-bounded-by": "the model's context"})]
Name = Annotated[StrictStr, Field(max_length=MAX_NAME_CHARS)]
ModelName = Annotated[Name, BeforeValidator(lambda value: "" if value is None else value)]
RepetitionPenalty = Annotated[Number, Field(ge=0.1, le=10)]
Penalty = Annotated[Number, Field(ge=-2, le=2)]
StopString = Annotated[StrictStr, Field(max_length=MAX_STOP_CHARS)]
Integer = Annotated[StrictInt, BeforeValidator(_read_whole_number)]
TokenCount = Annotated[Integer, Field(ge=1, le=MAX_INTEGER)]
TokenLimit = Annotated[TokenCount | None, BeforeValidator(_read_no_limit)]
PromptIds = Annotated[list[StrictInt], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPT_IDS)]
SchemaText = Annotated[StrictStr, Field(max_length=MAX_GRAMMAR_CHARS)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_check_schema_size)]
StopStrings = Annotated[
    list[StopString], Field(fail_fast=True, max_length=MAX_STOP_STRINGS), AfterValidator(_check_stop_size)
]
Tools = Annotated[list[JsonObject], Field(fail_fast=True, max_length=MAX_TOOLS)]


class BadRequest(Exception):
    """An invalid request: the message, the field (`param`), OpenAI's error code, the HTTP status, and the seconds after
    which the client may try again.

    Args:
        message: what was given, what was expected.
        param: the field; None: the whole body.
        code: of OpenAI's codes.
        status: of HTTP.
        retry_after: seconds after which the client may try again.
    """

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
    model_config = ConfigDict(extra="allow")


class Part(_Body):
    """A part of a message: text, or in an assistant's message a call of the model's own tool, or its output."""

    type: Name
    text: ContextText | None = None


Parts = Annotated[list[Part], Field(fail_fast=True, max_length=MAX_PARTS)]
TEXT_PARTS = ("text", "input_text", "output_text")
UNUSED_PARTS = ("refusal", "thinking", "redacted_thinking", "reasoning", "reasoning_content")  # of earlier answers


class CalledFunction(_Body):
    """Name and arguments of a call."""

    name: Name
    arguments: Annotated[ContextText | None, BeforeValidator(_write_arguments)] = None


class ToolCall(_Body):
    """A call of one of the request's tools in an assistant's message."""

    id: Name | None = None
    type: Name | None = None
    function: CalledFunction


class Message(_Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: ContextText | Parts | None = None
    parts: Parts | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=MAX_TOOL_CALLS)] | None = None
    tool_call_id: Name | None = None

    def to_conversation_message(self) -> dict[str, Any]:
        """Returns the message in the form of `fledgling.text.turns`; raises BadRequest for a part that is no text."""
        message: dict[str, Any] = {"role": self.role}
        content = self.parts if self.parts and self.role == "assistant" else self.content
        message["content"] = content if content is None or isinstance(content, str) else _read_parts(content)
        if content is self.parts and isinstance(self.content, str):
            # Parts that were accumulated from a stream begin with the first call: the prose before it is in `content`.
            prose = "".join(part.text or "" for part in self.parts or () if part.type == "text")
            if len(self.content) > len(prose) and self.content.endswith(prose):
                before = self.content[: len(self.content) - len(prose)]
                message["content"].insert(0, {"type": "text", "text": before})
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        return message


def _read_parts(parts: list[Part]) -> list[dict[str, str]]:
    """Returns the parts that a model of text reads; raises BadRequest that names any other."""
    kept = []
    for part in parts:
        if part.type in UNUSED_PARTS:
            continue
        if part.type not in (*TEXT_PARTS, "python", "output"):
            text = f"messages: a part of type {shorten_text(part.type)}; the model reads text only"
            raise BadRequest(text, "messages")
        if part.text is None:
            raise BadRequest(f"messages: a part of type {part.type} has no text", "messages")
        kept.append({"type": "text" if part.type in TEXT_PARTS else part.type, "text": part.text})
    return kept


class StreamOptions(_Body):
    """Options of a stream."""

    include_usage: StrictBool | None = None


class IgnoringBody(_Body):
    """A body whose further fields are ignored and counted."""

    _ignored: list[str] = PrivateAttr(default_factory=list)

    @property
    def ignored_fields(self) -> list[str]:
        """Names of the fields that were ignored."""
        return self._ignored


class CommonRequest(IgnoringBody):
    """The fields of both kinds of completion."""

    model: ModelName = ""
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[Number, Field(ge=0, le=MAX_TEMPERATURE)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None  # 0: the most likely token
    top_k: Annotated[Integer, Field(ge=-1, le=1_000_000, description="-1 and 0: all tokens.")] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: RepetitionPenalty | None = None
    repeat_penalty: RepetitionPenalty | None = None  # llama.cpp's name of it
    n: Annotated[Integer, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: StopString | StopStrings | None = None
    seed: Annotated[Integer, Field(ge=-MAX_INTEGER - 1, le=MAX_INTEGER)] | None = None
    logit_bias: (
        Annotated[
            dict[str, Annotated[Number, Field(ge=-100, le=100)]],
            Field(max_length=MAX_OBJECT_KEYS, description="Keys are token ids, written as JSON writes an integer."),
        ]
        | None
    ) = None
    presence_penalty: Penalty | None = None
    structured_outputs: JsonObject | None = None  # this and the next five are vLLM's names
    guided_json: JsonObject | SchemaText | None = None
    guided_regex: SchemaText | None = None
    guided_choice: Annotated[list[StopString], Field(fail_fast=True, max_length=MAX_CHOICE_TEXTS)] | None = None
    guided_grammar: SchemaText | None = None
    grammar: SchemaText | None = None
    frequency_penalty: Penalty | None = None

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

    def choose_repetition_penalty(self) -> float | None:
        """Returns the penalty under either of its names; raises BadRequest for two different ones."""
        given = {value for value in (self.repetition_penalty, self.repeat_penalty) if value is not None}
        if len(given) > 1:
            both = f"{self.repeat_penalty}, and repetition_penalty is {self.repetition_penalty}: give one of them"
            raise BadRequest(f"repeat_penalty: {both}", "repeat_penalty")
        return float(given.pop()) if given else None

    def stop_strings(self) -> tuple[str, ...]:
        """Returns the stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(CommonRequest):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: TokenLimit = None
    max_completion_tokens: TokenLimit = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None
    calculator: StrictBool = True
    truncation: Literal["auto", "disabled"] | None = None
    response_format: JsonObject | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True, max_length=4)] | None = None
    tools: Tools | None = None
    tool_choice: Name | JsonObject | None = None
    parallel_tool_calls: StrictBool | None = None


class CompletionRequest(CommonRequest):
    """Body of POST /v1/completions; with echo, logprobs and max_tokens = 0 it only scores the prompt."""

    prompt: (
        ContextText
        | Annotated[list[ContextText], Field(fail_fast=True, min_length=1, max_length=MAX_CHOICES)]
        | PromptIds
        | Annotated[list[PromptIds], Field(fail_fast=True, min_length=1, max_length=MAX_CHOICES)]
    )
    max_tokens: Annotated[Integer, Field(ge=0, le=MAX_INTEGER)] | None = None
    logprobs: Annotated[Integer, Field(ge=0, le=5)] | None = None
    echo: StrictBool | None = None
    best_of: Annotated[Integer, Field(ge=1, le=MAX_CHOICES)] | None = None

    def prompt_list(self) -> list[str | list[int]]:
        """Returns the prompts, one or several, each as text or token ids."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else list(prompt)


def parse_body(kind: type[IgnoringBody], body: bytes) -> Any:
    """Parses and validates a body; raises BadRequest that names the first invalid field, and what was expected."""
    try:
        value = parse_json(body)
    except InvalidJSON as error:
        raise BadRequest(f"the body: {error}") from None
    parsed = validate_body(kind, value)
    try:
        parsed._ignored = list_ignored(parsed)
    except UnsupportedField as error:
        raise BadRequest(str(error), error.name) from None
    return parsed


def validate_body(kind: type[IgnoringBody], value: Any) -> Any:
    """Returns the value of a body as its class; raises BadRequest as `parse_body` does."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        field, message = describe_invalid_field(error.errors(include_url=False), value)  # type: ignore[arg-type]
        raise BadRequest(message, field) from None
