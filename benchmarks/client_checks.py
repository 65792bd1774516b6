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
PARAMETERS = {
    "type": "object",
    "properties": {"size": {"enum": ["small", "large"]}},
    "required": ["size"],
    "additionalProperties": False,
}
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


def make_pick_tool() -> dict[str, Any]:
    """Returns a tool in OpenAI's form, which Ollama's has too."""
    return {"type": "function", "function": {"name": "pick", "description": "Picks.", "parameters": PARAMETERS}}


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

    pick = make_pick_tool()

    def check_provider(provider: str, base: str) -> Iterator[Check]:
        own = settings | {"model": f"{provider}/{MODEL}", "api_base": base}
        long = own | {"max_tokens": 400, "messages": messages}
        yield f"{provider}: completion", lambda: litellm.completion(messages=messages, **own)
        yield f"{provider}: streamed", lambda: list(litellm.completion(messages=messages, stream=True, **own))
        yield f"{provider}: tools", lambda: litellm.completion(**long, tools=[pick])
        yield (
            f"{provider}: response_format of a class",
            lambda: size.model_validate_json(
                litellm.completion(**long, response_format=size).choices[0].message.content
            ),
        )

    size = size_class()
    yield from check_provider("ollama", address)
    yield from check_provider("ollama_chat", address)
    yield from check_provider("anthropic", address)
    vectors = {"model": f"ollama/{MODEL}", "api_base": address, "input": ["a", "b"]}
    yield "ollama: embedding", lambda: litellm.embedding(**vectors).data[1]["embedding"][0]
    yield "completion", lambda: litellm.completion(messages=messages, **settings)
    yield "completion, streamed", lambda: list(litellm.completion(messages=messages, stream=True, **settings))
    yield "its answer sent back", replay
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
    if find_spec("ollama"):
        from pydantic_ai.providers.ollama import OllamaProvider

        other = OpenAIChatModel(MODEL, provider=OllamaProvider(base_url=f"{address}/v1"))
        yield "an agent, Ollama's provider", lambda: Agent(other, output_type=size).run_sync(QUESTION).output.size
    if find_spec("anthropic"):
        from pydantic_ai.models.anthropic import AnthropicModel
        from pydantic_ai.providers.anthropic import AnthropicProvider

        blocks = AnthropicModel(MODEL, provider=AnthropicProvider(base_url=address, api_key=KEY))
        yield "an agent, Anthropic's API", lambda: Agent(blocks).run_sync(QUESTION, model_settings=short)
        yield (
            "an agent with a class as output, Anthropic's API",
            lambda: Agent(blocks, output_type=size).run_sync(QUESTION).output.size,
        )
    responses = OpenAIResponsesModel(MODEL, provider=provider)
    yield "an agent, Responses API", lambda: Agent(responses).run_sync(QUESTION, model_settings=short)


def check_anthropic(address: str) -> Iterator[Check]:
    """Yields the checks of Anthropic's client."""
    import anthropic

    api = anthropic.Anthropic(base_url=address, api_key=KEY, max_retries=0)
    ask: dict[str, Any] = {"model": MODEL, "max_tokens": 20, "messages": [{"role": "user", "content": QUESTION}]}
    tool = {"name": "pick", "description": "Picks.", "input_schema": PARAMETERS}
    size = size_class()

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
    blocks = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    usual: dict[str, Any] = {"metadata": {"user_id": "a"}, "thinking": {"type": "disabled"}, "system": blocks}
    yield "messages, usual settings", lambda: api.messages.create(**ask, **usual, stop_sequences=["x"])
    yield "messages, stream=True", lambda: list(api.messages.create(**ask, stream=True))
    yield (
        "messages.parse()",
        lambda: require(api.messages.parse(**ask | {"max_tokens": 300}, output_format=size).parsed_output),
    )
    yield "models.list()", lambda: api.models.list().data[0].id
    yield "models.retrieve()", lambda: api.models.retrieve(MODEL).id
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
    pick = make_pick_tool()

    def loop() -> None:
        answer = api.chat(model=MODEL, messages=messages, tools=[pick], options={"num_predict": 300})
        call = {"function": {"name": "pick", "arguments": {"size": "small"}}}
        reply = (
            answer.message if answer.message.tool_calls else {"role": "assistant", "content": "", "tool_calls": [call]}
        )
        result = {"role": "tool", "tool_name": "pick", "content": "5"}
        api.chat(model=MODEL, messages=[*messages, reply, result], tools=[pick], options=short)

    def add(a: int, b: int) -> int:
        """Adds two numbers.

        Args:
            a: one.
            b: the other.
        """
        return a + b

    yield "tools, two turns", loop
    yield "tools of functions", lambda: api.chat(model=MODEL, messages=messages, tools=[add], options=short)
    yield (
        "chat, think=False, keep_alive",
        lambda: api.chat(model=MODEL, messages=messages, think=False, keep_alive="5m", options=short),
    )
    yield "generate, streamed", lambda: list(api.generate(model=MODEL, prompt=QUESTION, options=short, stream=True))
    yield (
        "generate, format of a class",
        lambda: size.model_validate_json(
            api.generate(model=MODEL, prompt=QUESTION, system="Be brief.", format=size.model_json_schema()).response
        ),
    )
    yield "embed", lambda: api.embed(model=MODEL, input=["a", "b"]).embeddings[1][0]
    yield "embeddings", lambda: api.embeddings(model=MODEL, prompt="a").embedding[0]
    yield "list", lambda: api.list().models[0].size.human_readable()
    yield "ps", lambda: require(api.ps().models[0].expires_at)
    yield "show", lambda: require(api.show(MODEL).modelinfo)


def check_langchain_ollama(address: str) -> Iterator[Check]:
    """Yields the checks of langchain-ollama."""
    from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM

    settings: dict[str, Any] = {"base_url": address, "model": MODEL}
    chat, long, size = ChatOllama(**settings, num_predict=20), ChatOllama(**settings), size_class()
    yield "invoke", lambda: chat.invoke(QUESTION)
    yield (
        "invoke, usual settings",
        lambda: ChatOllama(
            **settings, num_predict=20, temperature=0, num_ctx=2048, repeat_penalty=1.1, stop=["x"], reasoning=False
        ).invoke(QUESTION),
    )
    yield (
        "invoke, validate_model_on_init",
        lambda: ChatOllama(**settings, num_predict=20, validate_model_on_init=True).invoke(QUESTION),
    )
    yield "stream", lambda: list(chat.stream(QUESTION))
    yield "bind_tools", lambda: chat.bind_tools([make_pick_tool()]).invoke(QUESTION)
    yield "with_structured_output, json_schema", lambda: require(long.with_structured_output(size).invoke(QUESTION))
    yield "embeddings", lambda: OllamaEmbeddings(**settings).embed_documents(["a", "b"])
    yield "completion", lambda: OllamaLLM(**settings, num_predict=20).invoke(QUESTION)


def check_langchain_anthropic(address: str) -> Iterator[Check]:
    """Yields the checks of langchain-anthropic."""
    from langchain_anthropic import ChatAnthropic

    settings: dict[str, Any] = {"base_url": address, "model": MODEL, "api_key": KEY, "max_retries": 0}
    chat, long, size = ChatAnthropic(**settings, max_tokens=20), ChatAnthropic(**settings, max_tokens=400), size_class()
    yield "invoke", lambda: chat.invoke([("system", "Be brief."), ("human", QUESTION)])
    yield "stream", lambda: list(chat.stream(QUESTION))
    yield "bind_tools", lambda: long.bind_tools([make_pick_tool()], tool_choice="any").invoke(QUESTION)
    for method in ("json_schema", "function_calling"):
        structured = long.with_structured_output(size, method=method)
        yield f"with_structured_output, {method}", partial(structured.invoke, QUESTION)


CLIENTS = {
    "openai": check_openai,
    "langchain-openai": check_langchain,
    "litellm": check_litellm,
    "llama-index-llms-openai-like": check_llama_index,
    "pydantic-ai-slim": check_pydantic_ai,
    "anthropic": check_anthropic,
    "ollama": check_ollama,
    "langchain-ollama": check_langchain_ollama,
    "langchain-anthropic": check_langchain_anthropic,
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
