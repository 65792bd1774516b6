"""The conversation's layout for others: a chat template in Jinja, and the tokenizer's settings beside it.

One idea: the layout of `fledgling.text.conversation` written down once more, in the language that transformers, vLLM
and llama.cpp read; a test holds the two to each other, token by token. One thing it cannot do: there the text is
rendered first and tokenized whole, so the name of a control token in what a user writes becomes that token.
"""

from __future__ import annotations

from typing import Any

from fledgling.text.tokenizer import Tokenizer

CHAT_TEMPLATE = """\
{{- '<|bos|>' -}}
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- set plain = message.content is string -%}
{%- if message.role == 'assistant' -%}
{{- '<|assistant_start|>' -}}
{%- if plain -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'text' -%}
{{- part.text -}}
{%- else -%}
{{- '<|' + part.type + '_start|>' + part.text + '<|' + part.type + '_end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|assistant_end|>' -}}
{%- else -%}
{%- set text = message.content if plain else message.content | map(attribute='text') | join('') -%}
{%- if message.role == 'system' -%}
{%- set ns.system = text + '\\n\\n' -%}
{%- else -%}
{{- '<|user_start|>' + ns.system + text + '<|user_end|>' -}}
{%- set ns.system = '' -%}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant_start|>' -}}
{%- endif -%}
"""


def supports_chat(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer has the control tokens that a conversation is laid out with."""
    return {"<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>"} <= set(
        tokenizer.special_tokens
    )


def special_token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Ids for generation: what a text begins with, and what ends an answer (none for a tokenizer without)."""
    begin = tokenizer.bos_or_none
    if begin is None:
        return {}
    stop = tokenizer.special_tokens.get("<|assistant_end|>")
    return {"bos_token_id": begin, "eos_token_id": [stop, begin] if stop is not None else begin, "pad_token_id": begin}


def tokenizer_config(tokenizer: Tokenizer, context: int) -> dict[str, Any]:
    """The contents of tokenizer_config.json."""
    names = {index: name for name, index in tokenizer.special_tokens.items()}
    said: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.bos_or_none is not None:
        begin = names[tokenizer.bos_or_none]
        end = "<|assistant_end|>" if "<|assistant_end|>" in tokenizer.special_tokens else begin
        said |= {"bos_token": begin, "eos_token": end, "pad_token": begin}
    if supports_chat(tokenizer):
        said["chat_template"] = CHAT_TEMPLATE
    return said
