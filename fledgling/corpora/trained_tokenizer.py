"""The files of a trained tokenizer: tokenizer.json, and training.json, which says what it was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fledgling.record import write_json
from fledgling.text.tokenizer import Tokenizer


def save_trained_tokenizer(tokenizer: Tokenizer, path: Path, facts: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Writes tokenizer.json, and training.json in the same folder; returns the first file and the facts of the second.

    training.json has `facts`, the tokenizer's `training_info` and its fingerprint.
    """
    file = tokenizer.save(path)
    written = {**facts, **(tokenizer.training_info or {}), "fingerprint": tokenizer.fingerprint()}
    write_json(file.with_name("training.json"), written)
    return file, written


def read_training_facts(file: Path) -> dict[str, Any]:
    """Returns the contents of the training.json next to a tokenizer.json; {} where there is none."""
    try:
        facts = json.loads(file.with_name("training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
