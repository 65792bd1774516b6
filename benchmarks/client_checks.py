"""Checks of Python clients against a server, run by an interpreter that has their packages: `clients.py` starts it.

    python client_checks.py ADDRESS

A check does what a client's documentation shows for OpenAI's API with another base URL. Each prints a line of JSON:
client, version, what was done, and "answered" or the error. The model's weights are random, so a check looks at the
form of an answer and never at what it says.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Literal

QUESTION = "What is 2 + 3?"
MODEL = "tiny"
KEY = "none"
ENDS = {"guided_regex": "[a-z]{4,9}"}  # openai-python's stream helpers raise for answers that are cut
Check = tuple[str, Callable[[], Any]]


def size_class() -> Any:
    """Returns a schema with few answers: a random model ends one soon."""
    from pydantic import BaseModel

    class Size(BaseModel):
        """The size of a thing."""

        size: Literal["small", "large"]
        fits: bool

    return Size


def require(value: Any) -> None:
    """Raises AssertionError where a client parsed nothing."""
    assert value is not None


def check_openai(address: str) -> Iterator[Check]:
    """Yields the checks of openai-python."""
    import openai

    api = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)
    ask: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]}
    size = size_class()
    tool = openai.pydantic_function_tool(size)

    def stream_helper() -> None:
        with api.chat.completions.stream(**ask, extra_body=ENDS) as stream:
            for _ in stream:
                pass
            stream.get_final_completion()

    def loop() -> None:
        messages: list[Any] = list(ask["messages"])
        message = api.chat.completions.parse(model=MODEL, messages=messages, tools=[tool], tool_choice="required")
        messages.append(message.choices[0].message)
        for call in message.choices[0].message.tool_calls or ():
            assert isinstance(call.function.parsed_arguments, size)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "5"})
        api.chat.completions.create(model=MODEL, messages=messages, tools=[tool], max_tokens=20)

    def response_stream() -> None:
        with api.responses.stream(model=MODEL, input=QUESTION, extra_body=ENDS) as stream:
            for _ in stream:
                pass
            stream.get_final_response()

    yield "chat", lambda: api.chat.completions.create(**ask, max_tokens=20)
    yield "chat, .stream()", stream_helper
    yield (
        "chat, .parse()",
        lambda: require(api.chat.completions.parse(**ask, response_format=size).choices[0].message.parsed),
    )
    yield "tools, two turns", loop
    text: dict[str, Any] = {"model": MODEL, "input": QUESTION}
    yield "responses", lambda: api.responses.create(**text, max_output_tokens=20).output_text
    yield "responses, .stream()", response_stream
    yield (
        "responses, .parse()",
        lambda: require(api.responses.parse(model=MODEL, input=QUESTION, text_format=size).output_parsed),
    )
    yield "embeddings", lambda: api.embeddings.create(model=MODEL, input=["a", "b"]).data[1].embedding[0]


def _parsed(completion: Any) -> Any:
    return completion.choices[0].message.parsed


def check_langchain(address: str) -> Iterator[Check]:
    """Yields the checks of langchain-openai."""
    from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    settings: dict[str, Any] = {"base_url": f"{address}/v1", "api_key": KEY, "model": MODEL, "max_retries": 0}
    chat, size = ChatOpenAI(**settings, max_tokens=20), size_class()
    long = ChatOpenAI(**settings)

    @tool
    def pick(size: Literal["small", "large"]) -> str:
        """Picks a thing of a size."""
        return size

    def loop() -> None:
        bound = long.bind_tools([pick], tool_choice="any")
        messages: list[Any] = [SystemMessage("Be brief."), HumanMessage(QUESTION)]
        answer = bound.invoke(messages)
        assert answer.tool_calls
        results = [ToolMessage(pick.invoke(call["args"]), tool_call_id=call["id"]) for call in answer.tool_calls]
        chat.bind_tools([pick]).invoke([*messages, answer, *results])

    yield "invoke", lambda: chat.invoke([SystemMessage("Be brief."), HumanMessage(QUESTION)])
    yield "stream", lambda: list(chat.stream(QUESTION))
    yield "bind_tools, two turns", loop
    for method in ("json_schema", "function_calling"):
        structured = long.with_structured_output(size, method=method)
        yield f"with_structured_output, {method}", partial(structured.invoke, QUESTION)
    responses = ChatOpenAI(**settings, max_tokens=20, use_responses_api=True)
    yield "invoke, Responses API", lambda: responses.invoke(QUESTION)
    yield "stream, Responses API", lambda: list(responses.stream(QUESTION))
    embeddings = OpenAIEmbeddings(**settings, check_embedding_ctx_length=False)
    yield "embeddings, check_embedding_ctx_length=False", lambda: embeddings.embed_documents(["a", "b"])


def check_litellm(address: str) -> Iterator[Check]:
    """Yields the checks of LiteLLM."""
    import litellm

    litellm.suppress_debug_info = True
    settings: dict[str, Any] = {
        "model": f"openai/{MODEL}",
        "api_base": f"{address}/v1",
        "api_key": KEY,
        "max_tokens": 20,
    }
    messages: list[Any] = [{"role": "user", "content": QUESTION}]

    def replay() -> None:
        answer = litellm.completion(messages=messages, **settings).choices[0].message
        litellm.completion(messages=[*messages, answer.model_dump(), *messages], **settings)

    yield "completion", lambda: litellm.completion(messages=messages, **settings)
    yield "completion, streamed", lambda: list(litellm.completion(messages=messages, stream=True, **settings))
    yield "its answer sent back", replay
    size = size_class()
    yield (
        "response_format of a class",
        lambda: size.model_validate_json(
            litellm.completion(messages=messages, **settings | {"max_tokens": 200}, response_format=size)
            .choices[0]
            .message.content
        ),
    )


def check_llama_index(address: str) -> Iterator[Check]:
    """Yields the checks of LlamaIndex."""
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(model=MODEL, api_base=f"{address}/v1", api_key=KEY, is_chat_model=True, max_tokens=20)
    yield "chat", lambda: llm.chat([ChatMessage(role="system", content="Be brief."), ChatMessage(content=QUESTION)])
    yield "stream_chat", lambda: list(llm.stream_chat([ChatMessage(content=QUESTION)]))
    text = OpenAILike(model=MODEL, api_base=f"{address}/v1", api_key=KEY, is_chat_model=False, max_tokens=20)
    yield "complete", lambda: text.complete(QUESTION)


def check_pydantic_ai(address: str) -> Iterator[Check]:
    """Yields the checks of Pydantic AI."""
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{address}/v1", api_key=KEY)
    chat, size = OpenAIChatModel(MODEL, provider=provider), size_class()
    short: Any = {"max_tokens": 20}
    yield "an agent", lambda: Agent(chat).run_sync(QUESTION, model_settings=short)
    yield "an agent with a class as output", lambda: Agent(chat, output_type=size).run_sync(QUESTION).output.size
    responses = OpenAIResponsesModel(MODEL, provider=provider)
    yield "an agent, Responses API", lambda: Agent(responses).run_sync(QUESTION, model_settings=short)


def check_anthropic(address: str) -> Iterator[Check]:
    """Yields the checks of Anthropic's client."""
    import anthropic

    api = anthropic.Anthropic(base_url=address, api_key=KEY, max_retries=0)
    ask: dict[str, Any] = {"model": MODEL, "max_tokens": 20, "messages": [{"role": "user", "content": QUESTION}]}
    schema = {"type": "object", "properties": {"size": {"enum": ["small", "large"]}}, "required": ["size"]}
    tool = {"name": "pick", "description": "Picks.", "input_schema": schema | {"additionalProperties": False}}

    def stream() -> None:
        with api.messages.stream(**ask) as events:
            events.get_final_message()

    def loop() -> None:
        settings = {**ask, "max_tokens": 400, "tools": [tool]}
        answer = api.messages.create(**settings, tool_choice={"type": "any", "disable_parallel_tool_use": True})
        (call,) = (block for block in answer.content if block.type == "tool_use")
        assert call.input["size"] in ("small", "large")
        result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "5"}]}
        api.messages.create(
            **settings | {"messages": [*ask["messages"], {"role": "assistant", "content": answer.content}, result]}
        )

    yield "messages", lambda: api.messages.create(**ask, system="Be brief.")
    yield "messages.stream()", stream
    yield "tools, two turns", loop
    yield "count_tokens", lambda: api.messages.count_tokens(model=MODEL, messages=ask["messages"]).input_tokens


def check_ollama(address: str) -> Iterator[Check]:
    """Yields the checks of Ollama's client."""
    import ollama

    api = ollama.Client(host=address)
    messages = [{"role": "user", "content": QUESTION}]
    short = {"num_predict": 20}
    size = size_class()
    yield "chat", lambda: api.chat(model=MODEL, messages=messages, options=short)
    yield "chat, streamed", lambda: list(api.chat(model=MODEL, messages=messages, options=short, stream=True))
    yield "generate", lambda: api.generate(model=MODEL, prompt=QUESTION, options=short)
    yield (
        "chat, format of a class",
        lambda: size.model_validate_json(
            api.chat(model=MODEL, messages=messages, format=size.model_json_schema()).message.content
        ),
    )
    yield "list", lambda: api.list().models[0].model


CLIENTS = {
    "openai": check_openai,
    "langchain-openai": check_langchain,
    "litellm": check_litellm,
    "llama-index-llms-openai-like": check_llama_index,
    "pydantic-ai-slim": check_pydantic_ai,
    "anthropic": check_anthropic,
    "ollama": check_ollama,
}


def main(address: str, *names: str) -> None:
    """Runs the checks of all clients, or of those named."""
    for name, check in CLIENTS.items():
        if names and name not in names:
            continue
        try:
            release = version(name)
        except PackageNotFoundError:
            print_result(name, "", "", "not installed")
            continue
        try:
            checks = list(check(address))
        except Exception as error:
            print_result(name, release, "import", describe_error(error))
            continue
        for what, run in checks:
            try:
                run()
                print_result(name, release, what, "answered")
            except Exception as error:
                print_result(name, release, what, describe_error(error))


def describe_error(error: Exception) -> str:
    """Returns kind and text of an error in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def print_result(client: str, release: str, what: str, result: str) -> None:
    """Prints one line of JSON."""
    print(json.dumps({"client": client, "version": release, "what": what, "result": result}), flush=True)


if __name__ == "__main__":
    assert find_spec("pydantic"), "the clients' interpreter has no pydantic"
    main(*sys.argv[1:])
