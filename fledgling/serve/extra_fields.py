"""Fields of a body that its class does not have: ignored and counted, or rejected by name.

Clients send a field of their own, replay ours and those of other servers, and name settings that this server has no use
for. What cannot change an answer is ignored and counted (/metrics). What would change it, and is not supported, is an
error that names the field, unless its value asks for nothing; so is a name that is nearly one of ours.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel

MAX_COUNTED_NAMES = 64  # further names are counted as "other": a client chooses them
MAX_NAME_CHARS = 64
MISSPELLED = 0.85  # similarity from which a name is taken for a misspelled one
EMPTY: tuple[Any, ...] = (None, "", [], {})
NEUTRAL = (*EMPTY, False, 0)

UNSUPPORTED = {  # fields that would change an answer: what to use, or that there is nothing
    "functions": "use tools",
    "function_call": "use tool_choice",
    "web_search_options": "this server searches nothing",
    "audio": "the model writes text only",
    "min_tokens": "",
    "ignore_eos": "",
    "stop_token_ids": "use stop",
    "bad_words": "use logit_bias",
    "allowed_token_ids": "use logit_bias",
    "length_penalty": "",
    "repetition_penalty_range": "the whole text counts",
    "frequency_penalty_range": "the whole text counts",
    "presence_penalty_range": "the whole text counts",
    "use_beam_search": "",
    "best_of": "use n",
    "echo": "use /v1/completions",
    "suffix": "",
    "typical_p": "",
    "tfs_z": "",
    "top_a": "",
    "mirostat": "",
    "xtc_probability": "",
    "dry_multiplier": "",
    "prompt_logprobs": "use echo and logprobs of /v1/completions",
    "previous_response_id": "responses are not stored: send the whole conversation as input",
    "conversation": "conversations are not stored: send the whole conversation as input",
    "background": "",
    "images": "the model reads text only",
    "chat_template": "the model has one layout",
    "template": "the model has one layout",
}
UNSUPPORTED |= dict.fromkeys(("typ_p", "tfs", "dynatemp_range", "no_repeat_ngram_size", "smoothing_factor"), "")
UNSUPPORTED |= dict.fromkeys(("top_n_sigma", "penalty_alpha", "num_beams", "beam_width"), "")
UNSUPPORTED_FALSE = {  # fields that ask for something where they are false
    "do_sample": "use temperature 0",
    "skip_special_tokens": "control tokens are never part of the text",
    "add_bos_token": "every text begins with bos",
}
LENGTH = "use max_tokens, max_output_tokens of /v1/responses, or options.num_predict of /api"
UNSUPPORTED |= dict.fromkeys(("max_new_tokens", "n_predict", "num_predict", "max_length", "maxTokens"), LENGTH)
UNSUPPORTED |= {
    "response_schema": "use response_format",
    "random_seed": "use seed",
    "options": "write its fields into the body",
    "extra_body": "write its fields into the body",
    "documents": "write them into a message",
    "include_stop_str_in_output": "a stop string is never part of the answer",
    "truncate_prompt_tokens": "use truncation of /v1/chat/completions",
    "stop_sequences": "use stop",
    "json_schema": "use response_format",
    "guided_decoding": "use response_format, or guided_json",
    "regex": "use guided_regex",
    "format": "use response_format, or text.format of /v1/responses",
    "system": "use a message of the role system, or instructions of /v1/responses",
}
UNSUPPORTED |= {  # of llama.cpp, vLLM, Mistral and others
    "min_new_tokens": "",
    "min_length": "",
    "ban_eos_token": "",
    "logits_processors": "use logit_bias",
    "custom_token_bans": "use logit_bias",
    "banned_tokens": "use logit_bias",
    "banned_strings": "",
    "stop_regex": "use stop",
    "stopping_strings": "use stop",
    "ebnf": "use grammar",
    "n_probs": "use logprobs",
    "return_token_ids": "",
    "return_tokens_as_token_ids": "",
    "lora": "use model: an adapter has a name of its own",
    "adapter_id": "use model: an adapter has a name of its own",
    "chat_template_kwargs": "the model has one layout",
    "instruction_template": "the model has one layout",
    "safe_prompt": "use a message of the role system",
    "negative_prompt": "",
    "guidance_scale": "",
    "encoder_repetition_penalty": "use repetition_penalty",
    "epsilon_cutoff": "",
    "eta_cutoff": "",
    "watermark": "",
    "input_prefix": "write it into the prompt",
    "input_suffix": "",
    "prompt_truncate_len": "use truncation of /v1/chat/completions",
}
THOUGHT_SETTINGS = ("enable_thinking", "thinking", "think")  # of vLLM, DeepSeek and Anthropic, Ollama
THOUGHT_LEVELS = ("low", "medium", "high")
OF_OTHER_ROUTES = {  # fields that some bodies have: what to use in the others
    "max_tokens": LENGTH,
    "max_completion_tokens": LENGTH,
    "max_output_tokens": LENGTH,
    "response_format": "use text.format of /v1/responses, output_config of /v1/messages, or format of /api",
    "instructions": "use a message of the role system",
    "prompt": "prompts are not stored: send the whole conversation",
    "tools": "use /v1/chat/completions",
    "truncation": "use /v1/chat/completions",
}
CONTINUES: dict[str, bool] = {  # what asks that the last message, the assistant's, is continued
    "continue_final_message": True,
    "continue_": True,
    "add_generation_prompt": False,
}
PREFIXES = ("prefix", "partial")  # the same as a field of that message
NOT_CONTINUED = "the last message is continued where it is the assistant's, and answered otherwise"
OTHERS = ("models",)  # that other servers know, and that are no misspelled names of ours
NEUTRAL_ONES: tuple[str, ...] = ("length_penalty", "typical_p", "typ_p", "tfs_z", "tfs", "best_of", "num_beams")
NEUTRAL_ONES += ("beam_width", "guidance_scale", "encoder_repetition_penalty")
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {  # of some fields, besides NEUTRAL: defaults of servers that have them
    **dict.fromkeys(NEUTRAL_ONES, (1,)),
    **dict.fromkeys((name for name, hint in (UNSUPPORTED | OF_OTHER_ROUTES).items() if hint == LENGTH), (-1,)),
    "top_n_sigma": (-1,),
    "truncation": ("disabled",),
}
SAME = {  # fields that may repeat one of ours with its value, as clients of several servers send them
    **dict.fromkeys((name for name, hint in UNSUPPORTED.items() if hint == LENGTH), "max_tokens"),
    **dict.fromkeys(("stop_sequences", "stopping_strings"), "stop"),
    "random_seed": "seed",
}
ANY_NUMBER = ("random_seed",)  # of which 0 asks for something too
OF_PENALTIES: dict[str, tuple[Any, ...]] = {  # fields that ask for something next to a penalty: what they may be there
    "repeat_last_n": (-1, 64),  # the whole text, and the default of Ollama and llama.cpp
    "penalize_newline": (True,),
    "penalize_nl": (True,),
}
PENALTIES = {"repetition_penalty": 1, "repeat_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}


class UnsupportedField(ValueError):
    """A field that would change the answer and is not supported; `name` is its name."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def list_ignored(body: BaseModel) -> list[str]:
    """Returns the names of the fields that a validated body ignores, of its objects too. Raises UnsupportedField.

    Only the body and its options (objects that are no items of a list) have settings; messages have a client's fields.
    """
    ignored = list(_check_settings(body))
    messages = _read_field(body, "messages") or [None]
    prefixes = [name for name in PREFIXES if _read_extra(messages[-1]).get(name) is True]
    if prefixes and not _is_continued(body):
        raise UnsupportedField("messages", f"messages.{len(messages) - 1}.{prefixes[0]}: {NOT_CONTINUED}")
    for name in type(body).model_fields:
        value = getattr(body, name)
        if isinstance(value, BaseModel):
            ignored += list_ignored(value)
        for item in value if isinstance(value, list) else ():
            ignored += _list_extra(item)
    for name in prefixes:  # honored
        ignored.remove(name)
    return ignored


def forbids_thought(body: BaseModel) -> bool:
    """Returns whether a body says, in one of the ways of other servers, that the model should not think."""
    extra = _read_extra(body)
    kwargs = extra.get("chat_template_kwargs")
    settings = [extra, kwargs if isinstance(kwargs, dict) else {}]
    if any(each.get(name) is False for each in settings for name in THOUGHT_SETTINGS):
        return True
    if extra.get("reasoning_effort") == "none":
        return True
    thinking = extra.get("thinking")
    return isinstance(thinking, dict) and thinking.get("type") == "disabled"


def name_demanded_thought(body: BaseModel) -> str:
    """Returns the field by which a body demands that the model thinks, as other servers' clients do; "" without one."""
    extra = _read_extra(body)
    kwargs = extra.get("chat_template_kwargs")
    inner = kwargs if isinstance(kwargs, dict) else {}
    for name in THOUGHT_SETTINGS:
        value = extra.get(name)
        if value is True or (name == "think" and value in THOUGHT_LEVELS):
            return name
        if isinstance(value, dict) and value.get("type") == "enabled":
            return name
        if inner.get(name) is True:
            return "chat_template_kwargs"
    return ""


def _check_settings(body: BaseModel) -> Iterator[str]:
    """Yields the fields that a body ignores. Raises UnsupportedField for one that would change the answer."""
    for name, value in _read_extra(body).items():
        hint = UNSUPPORTED.get(name, OF_OTHER_ROUTES.get(name))
        if name in UNSUPPORTED_FALSE and value is False and not (name == "do_sample" and _is_greedy(body)):
            raise UnsupportedField(name, f"{name}: false is not supported; {UNSUPPORTED_FALSE[name]}")
        if name == "add_special_tokens" and value is ("prompt" not in type(body).model_fields):
            raise UnsupportedField(name, f"{name}: {str(value).lower()} is not supported; every prompt has one bos")
        if name in CONTINUES and value is CONTINUES[name] and "messages" in type(body).model_fields:
            if not _is_continued(body):
                raise UnsupportedField(name, f"{name}: not supported here; {NOT_CONTINUED}")
            continue
        if hint is not None and not _asks_nothing(body, name, value):
            raise UnsupportedField(name, f"{name}: not supported{'; ' if hint else ''}{hint}")
        if name in OF_PENALTIES and value not in (*EMPTY, *OF_PENALTIES[name]) and _is_penalized(body):
            raise UnsupportedField(name, f"{name}: not supported; a penalty counts the whole text")
        is_other = hint is not None or name in OF_PENALTIES or name in OTHERS or value in EMPTY
        fields = type(body).model_fields
        near = [] if is_other else get_close_matches(name[:MAX_NAME_CHARS], fields, 1, MISSPELLED)
        if near and value != fields[near[0]].default:
            raise UnsupportedField(name[:MAX_NAME_CHARS], f"{name[:MAX_NAME_CHARS]}: no such field; {near[0]}?")
        yield name


def _read_extra(item: Any) -> dict[str, Any]:
    return (item.model_extra or {}) if isinstance(item, BaseModel) else {}


def _read_field(body: BaseModel, name: str) -> Any:
    """Returns a field that the body's class has; None for another, which a client may have filled with anything."""
    return getattr(body, name) if name in type(body).model_fields else None


def _is_continued(body: BaseModel) -> bool:
    messages = _read_field(body, "messages")
    return bool(messages) and getattr(messages[-1], "role", None) == "assistant"


def _asks_nothing(body: BaseModel, name: str, value: Any) -> bool:
    if name in SAME and value == _read_field(body, SAME[name]):
        return True
    if name == "chat_template_kwargs" and isinstance(value, dict):
        return all(setting in NEUTRAL or name in THOUGHT_SETTINGS for name, setting in value.items())
    return value in (*(EMPTY if name in ANY_NUMBER else NEUTRAL), *NEUTRAL_VALUES.get(name, ()))


def _is_penalized(body: BaseModel) -> bool:
    return any(_read_field(body, name) not in (None, neutral) for name, neutral in PENALTIES.items())


def _is_greedy(body: BaseModel) -> bool:
    return _read_field(body, "temperature") == 0


def _list_extra(item: Any) -> list[str]:
    """Returns the fields with a value that a message, and the objects within it, have beyond ours."""
    if not isinstance(item, BaseModel):
        return []
    ignored = [name for name, value in _read_extra(item).items() if value not in NEUTRAL]
    for name in type(item).model_fields:
        value = getattr(item, name)
        for child in value if isinstance(value, list) else [value]:
            ignored += _list_extra(child)
    return ignored


class FieldCounter:
    """Counts names, of which clients may choose any: at most MAX_COUNTED_NAMES different ones. Thread-safe."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, names: Iterable[str]) -> None:
        """Counts each of the names once."""
        with self._lock:
            for name in names:
                name = name[:MAX_NAME_CHARS].encode("utf-8", "replace").decode("utf-8")
                self.counts[name if name in self.counts or len(self.counts) < MAX_COUNTED_NAMES else "other"] += 1
