"""The layout of conversations in a Hugging Face directory: chat template, names of tokens, and what ends an answer.

tokenizer_config.json    bos_token, eos_token, chat_template (a text, or a list of named ones)
chat_template.jinja      the template, in newer directories
generation_config.json   eos_token_id: the ids at which generation stops; how its makers sample
"""

from __future__ import annotations

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
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default", next(iter(named.values()), None))
    if template is None:
        return None
    if not isinstance(template, str):
        raise UserError(f"{directory}: chat_template is a {type(template).__name__}; expected text")
    names = {key: _token_text(settings.get(key)) for key in ("bos_token", "eos_token")}
    generation = _read_optional_json(directory / "generation_config.json")
    ids = generation.get("eos_token_id")
    ids = ids if ids is not None else _read_optional_json(directory / "config.json").get("eos_token_id")
    stops = [one for one in (ids if isinstance(ids, list) else [ids]) if type(one) is int]
    return {"chat_template": template, **names, "stop_ids": stops, "sampling": read_sampling(generation)}


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
