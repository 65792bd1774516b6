"""The layout of conversations in a Hugging Face directory: chat template, names of tokens, and what ends an answer.

tokenizer_config.json    bos_token, eos_token, chat_template (a text, or several by name, of which "default" is read)
chat_template.jinja      the template, in newer directories
special_tokens_map.json  bos_token, eos_token, in older directories
generation_config.json   eos_token_id: the ids at which generation stops; how its makers sample
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fledgling.config import UserError
from fledgling.export.untrusted import read_json
from fledgling.text.jinja_template import MAX_TEMPLATE

SAMPLING_RANGES = {
    "temperature": (0.0, 10.0),
    "top_k": (0, 1 << 20),
    "top_p": (0.01, 1.0),
    "repetition_penalty": (0.1, 10.0),
}
INDEX = re.compile(r"[0-9]{1,9}")
TEMPLATE_FILE = "chat_template.jinja"


def read_layout(directory: Path) -> dict[str, Any] | None:
    """Returns the template with its names, for `Tokenizer.with_layout`; None where the directory has no template.

    Raises UserError for a file that cannot be read.
    """
    settings = _read_optional_json(directory / "tokenizer_config.json")
    template = settings.get("chat_template")
    file = directory / TEMPLATE_FILE
    if file.is_file():
        if file.stat().st_size > MAX_TEMPLATE:
            raise UserError(f"{file} has {file.stat().st_size:,} bytes; expected at most {MAX_TEMPLATE:,}")
        template = file.read_text(encoding="utf-8", errors="replace")
    if isinstance(template, list):  # [{"name", "template"}]
        template = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
    if isinstance(template, dict):
        if "default" not in template:
            raise UserError(
                f"{directory}: chat_template has the names {', '.join(map(str, template))[:80] or 'of none'}, and no "
                '"default"; rename the one that is meant'
            )
        template = template["default"]
    if template is None:
        return None
    if not isinstance(template, str):
        raise UserError(f"{directory}: chat_template is a {type(template).__name__}; expected text")
    older = _read_optional_json(directory / "special_tokens_map.json")
    names = {key: _token_text(settings.get(key) or older.get(key)) for key in ("bos_token", "eos_token")}
    generation = _read_optional_json(directory / "generation_config.json")
    ids = generation.get("eos_token_id")
    ids = ids if ids is not None else _read_optional_json(directory / "config.json").get("eos_token_id")
    stops = [one for one in (ids if isinstance(ids, list) else [ids]) if type(one) is int]
    others = {**settings, **(extra if isinstance(extra := settings.get("extra_special_tokens"), dict) else {})}
    named = {key: text for key, value in others.items() if key.endswith("_token") and (text := _token_text(value))}
    found = {"stop_ids": stops, "sampling": read_sampling(generation), "names": {**named, **names}}
    return {"chat_template": template, **names, **found}


def read_added_tokens(directory: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the contents of a tokenizer.json with the added tokens that only tokenizer_config.json has.

    Raises UserError for a token that the two give other ids.
    """
    listed = _read_optional_json(directory / "tokenizer_config.json").get("added_tokens_decoder")
    added = list(document.get("added_tokens") or [])
    ids = {token["content"]: token["id"] for token in added}
    for index, token in (listed if isinstance(listed, dict) else {}).items():
        content = _token_text(token)
        if not isinstance(token, dict) or not content or not INDEX.fullmatch(index) or ids.get(content) == int(index):
            continue
        if content in ids or int(index) in ids.values():
            raise UserError(f"{directory}: tokenizer.json and tokenizer_config.json have other tokens of id {index}")
        flags = {key: token.get(key) is True for key in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        added.append({"id": int(index), "content": content, **flags})
    return {**document, "added_tokens": added}


def read_sampling(generation: dict[str, Any]) -> dict[str, float]:
    """Returns the defaults of generation_config.json that are numbers in their range."""
    if generation.get("do_sample") is False:
        return {}
    found = {name: generation.get(name) for name in SAMPLING_RANGES}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and SAMPLING_RANGES[name][0] <= value <= SAMPLING_RANGES[name][1]
    }


def _read_optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _token_text(value: Any) -> str:
    """Returns the text of a token that is given as text or as {"content": text}."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""
