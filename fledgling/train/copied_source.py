"""What a run has copied from outside, `run.init_from` and `adapter.init_from`: its name, and a stamp of what it was.

A copy never changes. If its source has changed since, such as a run that was trained further, a line says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from fledgling.config import UserError
from fledgling.corpora.prepared_data import short_digest, stamp_file
from fledgling.export.peft_format import CONFIG_FILE, TENSORS_FILE
from fledgling.record import checkpoint, write_json
from fledgling.record.atomic_directory import MANIFEST

SOURCE_FILE = "source.json"  # in the copy
MAX_FILES = 1_000  # of a directory that are stamped


def write_source(copied: Path, name: str, settings: Mapping[str, object] = MappingProxyType({})) -> None:
    """Writes what a copy was copied from, a stamp of it, and the settings with which it was."""
    write_json(copied / SOURCE_FILE, {"source": name, "stamp": stamp_source(Path(name)), "settings": dict(settings)})


def read_source_name(copied: Path) -> str | None:
    """Returns what a copy was copied from; None where there is none, or nothing says it."""
    values = read_copied_source(copied)
    name = values.get("source", values.get("init_from"))  # "init_from": of earlier versions
    return name if isinstance(name, str) else None


def read_source_settings(copied: Path) -> Mapping[str, object]:
    """Returns the settings with which a copy was made; {} where nothing says them."""
    settings = read_copied_source(copied).get("settings")
    return settings if isinstance(settings, dict) else {}


def describe_changed_source(copied: Path, setting: str) -> list[str]:
    """Returns a line where the source of a copy exists and differs from the one that was copied."""
    name, before = read_source_name(copied), read_copied_source(copied).get("stamp")
    now = stamp_source(Path(name)) if name and before else None
    if now in (None, before):
        return []
    return [f"{setting}: {name} has changed since it was copied into the run: its copy is used, {copied}"]


def stamp_source(source: Path) -> str | None:
    """Returns a digest of a checkpoint, a model's directory, a file or an adapter; None where there is none of these.

    Of large files it is one of their sizes and of samples, and never of their times: a copy has the same.
    """
    try:
        if source.is_file():
            files = [source]
        elif (source / "config.json").is_file():
            files = [source / "config.json", *sorted(source.glob("*.safetensors"))[:MAX_FILES]]
        elif (source / CONFIG_FILE).is_file() and not (source / MANIFEST).is_file():
            files = [source / CONFIG_FILE, source / TENSORS_FILE]
        else:
            files = [checkpoint.resolve_checkpoint(source) / MANIFEST]
        stamps = [(file.name, *stamp_file(file)) for file in files]
        return short_digest([(name, size, sample) for name, size, _, sample in stamps])
    except (OSError, UserError):
        return None


def read_copied_source(copied: Path) -> dict[str, object]:
    """Returns what a copy says of its source; {} where it says nothing."""
    try:
        values = json.loads((copied / SOURCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
