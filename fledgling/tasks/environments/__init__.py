"""Environments: tasks of many turns, in which a model calls tools and sees what they return.

Start with `environment.py` (the class to derive from, and an episode), then `task.py` (an environment as a task, to
demonstrate, practise and evaluate). Shipped: `guessing.py`, `file_tree.py`, `database.py`, `web_shop.py`. A user's own
class runs in a process of its own (`episode_process.py`).
"""

from __future__ import annotations

import importlib
from pathlib import Path

from fledgling.config import UserError, did_you_mean
from fledgling.runtime.user_code import find_module_file
from fledgling.tasks.environments.environment import Environment, Episode
from fledgling.tasks.environments.task import EnvironmentTask

__all__ = ["ENVIRONMENTS", "Environment", "EnvironmentTask", "Episode", "find_class_file", "load_environment_task"]

ENVIRONMENTS = {"guessing": "Guessing", "file_tree": "FileTree", "database": "Database", "web_shop": "WebShop"}


def find_class_file(spec: str) -> Path | None:
    """Returns the file that holds a user's class, `module:Class` or `path.py:Class`; None of a shipped environment."""
    location = spec.rpartition(":")[0]
    if location.endswith(".py"):
        return Path(location)
    return find_module_file(location) if location else None


def load_environment_task(name: str, spec: str) -> EnvironmentTask:
    """Returns the task `name` of an environment: a shipped one, `module:Class` or `path.py:Class`.

    Raises UserError for an unknown name, and for a class that cannot be loaded.
    """
    if spec in ENVIRONMENTS:
        module = importlib.import_module(f"fledgling.tasks.environments.{spec}")
        return EnvironmentTask(name, getattr(module, ENVIRONMENTS[spec]))
    if ":" in spec:
        from fledgling.tasks.environments.episode_process import make_remote_class

        path = find_class_file(spec)
        return EnvironmentTask(name, make_remote_class(spec), (path,) if path else ())
    hint = did_you_mean(spec, ENVIRONMENTS)
    raise UserError(
        f'no environment "{spec}"{hint}; known: {", ".join(ENVIRONMENTS)}, module:Class, path/to/file.py:Class'
    )
