"""Bodies as programs send them by default: name -> (path, body), written from memory; RECORDED ones were received."""

from __future__ import annotations

from typing import Any

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"role": "user", "content": "What is 2 + 3?"}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        },
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}

BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Open WebUI": (
        CHAT,
        {
            "model": "",
            "messages": [{"role": "system", "content": ""}, ASK],
            "chat_id": "5e0c",
            "session_id": "aa",
            "id": "m1",
            "features": {"web_search": False, "image_generation": False},
            "variables": {"{{USER_NAME}}": "A"},
            "background_tasks": {"title_generation": True},
            "stream_options": {"include_usage": True},
        },
    ),
    "Open WebUI: a greeting and an empty answer in the history": (
        CHAT,
        {
            "model": "",
            "messages": [{"role": "assistant", "content": "Hi!"}, ASK, {"role": "assistant", "content": ""}, ASK],
        },
    ),
    "LibreChat": (
        CHAT,
        {
            "model": "",
            "messages": [{"role": "system", "content": "Be brief."}, {**ASK, "name": "A"}],
            "user": "65a",
            "temperature": 1,
            "top_p": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0,
        },
    ),
    "LibreChat: a title": (
        CHAT,
        {
            "model": "",
            "messages": [ASK, {"role": "assistant", "content": "5"}, {"role": "system", "content": "A title?"}],
        },
    ),
    "Continue": (
        CHAT,
        {
            "model": "",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "What is 2 + 3?"}]}],
            "tools": [ADD],
            "parallel_tool_calls": False,
            "stop": None,
            "top_k": None,
        },
    ),
    "Continue: completion of code": (
        "/v1/completions",
        {"model": "", "prompt": "def add(a, b):", "stop": ["\n\n", "```"], "temperature": 0.01, "raw": True},
    ),
    "aider": (
        CHAT,
        {
            "model": "",
            "messages": [
                {"role": "system", "content": "Edit."},
                ASK,
                {"role": "assistant", "content": "Ok."},
                ASK,
                {"role": "assistant", "content": "The answer is"},
            ],
            "temperature": 0,
            "num_ctx": 8192,
            "cache_control": {"type": "ephemeral"},
        },
    ),
    "LiteLLM: its answer sent back": (
        CHAT,
        {
            "model": "",
            "messages": [
                ASK,
                {
                    "role": "assistant",
                    "content": "5",
                    "tool_calls": None,
                    "function_call": None,
                    "provider_specific_fields": {"refusal": None},
                    "annotations": [],
                },
                ASK,
            ],
            "extra_body": {},
        },
    ),
    "openai-python: model_dump() of an answer": (
        CHAT,
        {
            "model": "",
            "messages": [
                ASK,
                {
                    "role": "assistant",
                    "content": "5",
                    "refusal": None,
                    "annotations": None,
                    "audio": None,
                    "function_call": None,
                    "tool_calls": None,
                },
                ASK,
            ],
            "reasoning_effort": "low",
            "store": False,
            "metadata": {},
        },
    ),
    "an agent: results of tools": (
        CHAT,
        {
            "model": "",
            "messages": [
                ASK,
                {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "Add."},
                {"role": "tool", "tool_call_id": "c1", "name": "add", "content": "5"},
            ],
            "tools": [ADD],
            "tool_choice": "auto",
        },
    ),
    "vLLM's clients": (
        CHAT,
        {
            "model": "",
            "messages": [ASK],
            "chat_template_kwargs": {"enable_thinking": False},
            "repetition_penalty": 1.05,
        },
    ),
    "llama.cpp's clients": (CHAT, {"model": "", "messages": [ASK], "cache_prompt": True, "slot_id": -1, "min_p": 0.05}),
    "SillyTavern": (
        CHAT,
        {"model": "", "messages": [{"role": "system", "content": "A."}, {"role": "system", "content": "B."}, ASK]},
    ),
}

SIZE: dict[str, Any] = {  # model_json_schema() of a class
    "description": "The size of a thing.",
    "properties": {
        "size": {"enum": ["small", "large"], "title": "Size", "type": "string"},
        "fits": {"title": "Fits", "type": "boolean"},
    },
    "required": ["size", "fits"],
    "title": "Size",
    "type": "object",
}
FEW = {"num_predict": 20}
BLOCK_CALL = {"id": "call_7", "input": {"a": 2, "b": 3}, "name": "add", "type": "tool_use"}
BLOCK_TOOL = {"name": "add", "input_schema": ADD["function"]["parameters"], "type": "custom", "description": "Adds."}
NO_OPTIONS = dict.fromkeys(
    ["mirostat", "num_ctx", "num_gpu", "num_thread", "repeat_last_n", "repeat_penalty", "temperature", "stop", "tfs_z"]
)
RECORDED: dict[str, tuple[str, str, dict[str, Any]]] = {  # name -> (path, content type, body)
    "litellm 1.110, ollama": (
        "/api/generate",
        "",
        {"prompt": "### User:\nWhat is 2 + 3?\n\n", "options": FEW, "stream": False, "images": []},
    ),
    "litellm, ollama: tools": (
        "/api/generate",
        "",
        {"prompt": "### User:\nReply with JSON.", "options": FEW, "stream": False, "format": "json", "images": []},
    ),
    "litellm, ollama_chat": (
        "/api/chat",
        "",
        {"messages": [{**ASK, "images": []}], "options": FEW, "stream": False, "tools": [ADD]},
    ),
    "litellm, ollama_chat: response_format": (
        "/api/chat",
        "",
        {
            "messages": [{**ASK, "images": []}],
            "options": FEW,
            "stream": False,
            "format": SIZE | {"additionalProperties": False},
        },
    ),
    "litellm, ollama: show": ("/api/show", "application/json", {"name": "tiny"}),
    "litellm, ollama: embedding": ("/api/embed", "application/json", {"input": ["a", "b"]}),
    "litellm, anthropic: response_format": (
        "/v1/messages",
        "application/json",
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "What is 2 + 3?"}]}],
            "max_tokens": 20,
            "tool_choice": {"name": "json_tool_call", "type": "tool"},
            "tools": [{"name": "json_tool_call", "input_schema": SIZE}],
        },
    ),
    "pydantic-ai 2.68, anthropic": (
        "/v1/messages",
        "application/json",
        {
            "max_tokens": 20,
            "messages": [{"role": "user", "content": [{"text": "What is 2 + 3?", "type": "text"}]}],
            "stream": False,
            "tool_choice": {"type": "any"},
            "tools": [{"name": "final_result", "description": "The size of a thing.", "input_schema": SIZE}],
        },
    ),
    "anthropic 2.14: tools, the second turn": (
        "/v1/messages",
        "application/json",
        {
            "max_tokens": 20,
            "messages": [
                ASK,
                {"role": "assistant", "content": [BLOCK_CALL]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_7", "content": "5"}]},
            ],
            "tools": [BLOCK_TOOL],
        },
    ),
    "anthropic: usual settings": (
        "/v1/messages",
        "application/json",
        {
            "max_tokens": 20,
            "messages": [ASK],
            "metadata": {"user_id": "a"},
            "stop_sequences": ["x"],
            "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            "thinking": {"type": "disabled"},
        },
    ),
    "anthropic: messages.parse()": (
        "/v1/messages",
        "application/json",
        {
            "max_tokens": 20,
            "messages": [ASK],
            "output_config": {
                "format": {"schema": SIZE | {"additionalProperties": False}, "type": "json_schema"},
            },
        },
    ),
    "ollama 0.6": (
        "/api/chat",
        "application/json",
        {"stream": False, "options": FEW, "keep_alive": "5m", "messages": [ASK], "tools": [], "think": False},
    ),
    "ollama: tools, the second turn": (
        "/api/chat",
        "application/json",
        {
            "stream": False,
            "options": FEW,
            "messages": [
                ASK,
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2}}}],
                },
                {"role": "tool", "content": "5", "tool_name": "add"},
            ],
            "tools": [ADD],
        },
    ),
    "ollama: embeddings": ("/api/embeddings", "application/json", {"prompt": "a"}),
    "langchain-ollama 1.1": (
        "/api/chat",
        "application/json",
        {
            "stream": True,
            "options": {"num_ctx": 2048, "num_predict": 20, "repeat_penalty": 1.1, "temperature": 0.0, "stop": ["x"]},
            "messages": [ASK],
            "tools": [],
            "think": False,
        },
    ),
    "langchain-ollama: structured output": (
        "/api/chat",
        "application/json",
        {"stream": True, "options": FEW, "format": SIZE, "messages": [ASK], "tools": []},
    ),
    "langchain-ollama: completion": (
        "/api/generate",
        "application/json",
        {"stream": True, "options": FEW, "format": "", "prompt": "What is 2 + 3?"},
    ),
    "langchain-ollama: embeddings": (
        "/api/embed",
        "application/json",
        {"input": ["a", "b"], "options": NO_OPTIONS},
    ),
}
