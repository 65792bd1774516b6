"""What a client may ask: OpenAI's request bodies, checked whole before anything is tokenized or queued.

The one idea: a field is honoured or refused, never silently dropped. What would change the answer and cannot be done
(tool schemas, penalties by frequency, response formats) is refused by name when it asks for anything; what only
describes the caller (`user`, `metadata`) is accepted and not kept. The same classes write the OpenAPI description.

Fields beyond OpenAI's: `top_k`, `min_p`, `repetition_penalty`, `calculator`; and `parts` of an assistant's message, the
answer as it was given, tool calls included.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError

MAX_CHOICES = 16
MAX_STOP_STRINGS = 4
MAX_MESSAGES = 512

Number = StrictInt | StrictFloat
Unused = Annotated[Any, Field(description="Accepted and not used.", json_schema_extra={"x-unused": True})]


class BadRequest(Exception):
    """A request that cannot be served as it is: HTTP status, the message, the field, OpenAI's code."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Part(_Body):
    """A part of a message: text, or (in an assistant's) a call of the tool and what it said."""

    type: Literal["text", "python", "output"]
    text: StrictStr


class Message(_Body):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | list[Part] | None = None
    parts: list[Part] | None = None
    name: Unused = None
    refusal: None = None

    def to_conversation_message(self) -> dict[str, Any]:
        """The message as `fledgling.text.conversation` takes it."""
        role = "system" if self.role == "developer" else self.role
        content = self.parts if self.parts and role == "assistant" else self.content
        if content is None:
            raise BadRequest(f"a message of the {self.role} has no content", "messages")
        return {"role": role, "content": content if isinstance(content, str) else [p.model_dump() for p in content]}


class StreamOptions(_Body):
    """What a stream ends with."""

    include_usage: StrictBool = False
    include_obfuscation: Unused = None


class TextFormat(_Body):
    """The only response format there is."""

    type: Literal["text"]


class CommonRequest(_Body):
    """What both kinds of completion take."""

    model: StrictStr = ""
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.1, le=10)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: StrictStr | Annotated[list[StrictStr], Field(max_length=MAX_STOP_STRINGS)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    presence_penalty: Annotated[Number, Field(ge=0, le=0, description="Only 0: use repetition_penalty.")] | None = None
    frequency_penalty: Annotated[Number, Field(ge=0, le=0, description="Only 0: use repetition_penalty.")] | None = None
    user: Unused = None

    def parse_logit_bias(self, vocabulary: int) -> tuple[tuple[int, float], ...]:
        """logit_bias with its keys as token ids; raises BadRequest for a key that is none."""
        found = []
        for key, value in (self.logit_bias or {}).items():
            if not (key.isascii() and key.isdigit() and int(key[:10]) < vocabulary and len(key) <= 10):
                wanted = f"token ids from 0 to {vocabulary - 1}"
                raise BadRequest(f"logit_bias has the key {key[:40]!r}; expected {wanted}", "logit_bias")
            found.append((int(key), float(value)))
        return tuple(found)

    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(CommonRequest):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    calculator: StrictBool = True
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
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
    """Body of POST /v1/completions; with echo, logprobs and max_tokens = 0 it only says how likely a text is."""

    prompt: (
        StrictStr
        | Annotated[list[StrictStr], Field(min_length=1, max_length=MAX_CHOICES)]
        | Annotated[list[StrictInt], Field(min_length=1)]
        | Annotated[list[Annotated[list[StrictInt], Field(min_length=1)]], Field(min_length=1, max_length=MAX_CHOICES)]
    )
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=5)] | None = None
    echo: StrictBool | None = None
    best_of: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] | None = None
    suffix: None = None

    def prompt_list(self) -> list[str | list[int]]:
        """The prompts, one or several, as text or token ids."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


def parse_body(kind: type[CommonRequest], body: bytes) -> Any:
    """Parse and check a body; raises BadRequest that names the first field that is off and what was expected."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"] if not _is_branch(step)) or None
        what = "no such parameter" if first["type"] == "extra_forbidden" else first["msg"]
        raise BadRequest(f"{where or 'the body'}: {what}", where) from None


def _is_branch(step: object) -> bool:
    """Whether a step of pydantic's path names a branch of a union and no field of the body."""
    return isinstance(step, str) and (any(mark in step for mark in "[(-") or step in ("str", "int", "float"))
