"""Bodies as programs are known to send them by default, written from memory, not recorded: name -> (path, body)."""

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
