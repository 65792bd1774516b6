"""Loads a function or class of a user, `module:name` or `path.py:name`, and tells its errors in one line."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

MAX_MESSAGE_LENGTH = 160  # characters of a value or a reason in a message


def load_object(spec: str) -> Any:
    """Returns what `module:name` or `path.py:name` names. Raises whatever importing it raises."""
    location, _, name = spec.rpartition(":")
    if location.endswith(".py"):
        module_spec = importlib.util.spec_from_file_location(Path(location).stem, location)
        assert module_spec is not None and module_spec.loader is not None
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[module_spec.name] = module
        module_spec.loader.exec_module(module)
    else:
        sys.path.insert(0, os.getcwd())
        module = importlib.import_module(location)
    return getattr(module, name)


def find_module_file(name: str) -> Path | None:
    """Returns the source file of a module without importing anything; None for one that is not found or has none."""
    path: list[str] | None = [os.getcwd(), *sys.path]
    found = None
    for part in name.split("."):
        found = importlib.machinery.PathFinder.find_spec(part, path) if path else None
        path = list(found.submodule_search_locations or ()) if found else None
    return Path(found.origin) if found and found.has_location and found.origin else None


def describe_exception(error: BaseException) -> str:
    """Returns an exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:MAX_MESSAGE_LENGTH]
