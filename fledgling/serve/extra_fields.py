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
OTHERS = ("models",)  # that other servers know, and that are no misspelled names of ours
NEUTRAL_ONES: tuple[str, ...] = ("length_penalty", "typical_p", "typ_p", "tfs_z", "tfs", "best_of")  # as 1 is
NEUTRAL_ONES += ("num_beams", "beam_width")
ANY_NUMBER = ("random_seed",)  # of which 0 asks for something too
NEUTRAL_LENGTHS = (-1, "disabled")  # no limit, and truncation that is off


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
    for name in type(body).model_fields:
        value = getattr(body, name)
        if isinstance(value, BaseModel):
            ignored += list_ignored(value)
        for item in value if isinstance(value, list) else ():
            ignored += _list_extra(item)
    return ignored


def _check_settings(body: BaseModel) -> Iterator[str]:
    """Yields the fields that a body ignores. Raises UnsupportedField for one that would change the answer."""
    for name, value in (body.model_extra or {}).items():
        hint = UNSUPPORTED.get(name, OF_OTHER_ROUTES.get(name))
        if name in UNSUPPORTED_FALSE and value is False and not (name == "do_sample" and _is_greedy(body)):
            raise UnsupportedField(name, f"{name}: false is not supported; {UNSUPPORTED_FALSE[name]}")
        if name == "thinking" and isinstance(value, dict) and value.get("type") == "enabled":
            raise UnsupportedField(name, "thinking: not supported; the model decides")
        asks_nothing = value in (EMPTY if name in ANY_NUMBER else NEUTRAL) or (name in NEUTRAL_ONES and value == 1)
        asks_nothing |= (hint == LENGTH or name in ("truncation", "top_n_sigma")) and value in NEUTRAL_LENGTHS
        if hint is not None and not asks_nothing:
            raise UnsupportedField(name, f"{name}: not supported{'; ' if hint else ''}{hint}")
        fields, is_other = type(body).model_fields, hint is not None or name in OTHERS or value in EMPTY
        near = [] if is_other else get_close_matches(name[:MAX_NAME_CHARS], fields, 1, MISSPELLED)
        if near and value != fields[near[0]].default:
            raise UnsupportedField(name[:MAX_NAME_CHARS], f"{name[:MAX_NAME_CHARS]}: no such field; {near[0]}?")
        yield name


def _is_greedy(body: BaseModel) -> bool:
    return getattr(body, "temperature", None) == 0


def _list_extra(item: Any) -> list[str]:
    """Returns the fields with a value that a message, and the objects within it, have beyond ours."""
    if not isinstance(item, BaseModel):
        return []
    ignored = [name for name, value in (item.model_extra or {}).items() if value not in NEUTRAL]
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
