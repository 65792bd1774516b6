"""The conversation format for other programs: a chat template in Jinja, and the tokenizer's settings.

chat_template.jinja has the layout of `fledgling.text.conversation` and the rule of `fledgling.text.turns`, with tools,
in the language of transformers, vLLM and llama.cpp; a test compares the two on random histories. Limitations: these
programs render the text first and tokenize it as a whole, so the name of a control token in a user's message becomes
that token; and arguments of a call that are a text are not checked to be JSON.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fledgling.text.tokenizer import Tokenizer


def read_chat_template() -> str:
    """Returns the text of chat_template.jinja."""
    return Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8").rstrip("\n")


def supports_chat(tokenizer: Tokenizer) -> bool:
    """Returns whether the tokenizer has the control tokens of a conversation."""
    return {"<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>"} <= set(
        tokenizer.special_tokens
    )


def supports_tools(tokenizer: Tokenizer) -> bool:
    """Returns whether the tokenizer has the control tokens of a tool's call and its output."""
    names = (f"<|{part}_{end}|>" for part in ("python", "output") for end in ("start", "end"))
    return set(names) <= set(tokenizer.special_tokens)


def special_token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the ids for generation: the start of a text, and the end of an answer (none without a start token)."""
    start = tokenizer.bos_or_none
    if start is None:
        return {}
    if layout := tokenizer.chat_layout:
        ends = [tokenizer.special_tokens[name] for name in layout["end_tokens"]]
        return {"bos_token_id": start, "eos_token_id": ends, "pad_token_id": ends[0]}
    stop = tokenizer.special_tokens.get("<|assistant_end|>")
    return {"bos_token_id": start, "eos_token_id": [stop, start] if stop is not None else start, "pad_token_id": start}


def tokenizer_config(tokenizer: Tokenizer, context: int) -> dict[str, Any]:
    """Returns the contents of tokenizer_config.json."""
    names = {index: name for name, index in tokenizer.special_tokens.items()}
    values: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.bos_or_none is not None:
        begin = names[tokenizer.bos_or_none]
        end = "<|assistant_end|>" if "<|assistant_end|>" in tokenizer.special_tokens else begin
        values |= {"bos_token": begin, "eos_token": end, "pad_token": begin}
    if layout := tokenizer.chat_layout:
        values |= {key: layout[key] for key in ("bos_token", "eos_token", "chat_template") if layout[key]}
    elif supports_chat(tokenizer):
        values["chat_template"] = read_chat_template()
    return values
