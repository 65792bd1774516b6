"""Digests of the user's texts that pretraining reads, which identify the past runs of one text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fledgling.config import Recipe, UserError
from fledgling.corpora.prepare import EMBEDDED, DocumentPreparer, find_source
from fledgling.corpora.prepared_data import digest_read_files, short_digest
from fledgling.corpora.public_sets import PUBLIC_SETS
from fledgling.files import is_row_file, list_folder, split_columns
from fledgling.plan.past_runs import list_mixture_sources
from fledgling.tasks import (
    CHAT_PREFIX,
    CONVERSATION_SETS,
    ENVIRONMENT_PREFIX,
    PUBLIC_TASKS,
    QUESTIONS_PREFIX,
    is_generated_source,
)
from fledgling.tasks.environments import find_class_file


def digest_texts(recipe: Recipe, read: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Returns the digest of each of the user's texts in pretraining, by its source; one that is not here has none.

    What is published or comes with the package has none either: its name says which text it is.

    Args:
        recipe: of the run.
        read: what a stage has read, by source, as its checkpoints record it (`data`); None: what is here is digested.
    """
    digests = {}
    for name in list_mixture_sources(recipe.pretrain):
        try:
            content = _digest_source(name, recipe.run.data_dir, (read or {}).get(name))
        except (OSError, UserError):
            continue
        if content:
            digests[name] = short_digest(content, *sorted(split_columns(name)[1].items()))
    return digests


def _digest_source(name: str, data_dir: str | Path | None, read: Any) -> str:
    """Returns the digest of a source's content; "" for one that its name tells."""
    if name.startswith(ENVIRONMENT_PREFIX):
        file = find_class_file(name.removeprefix(ENVIRONMENT_PREFIX))
        return digest_read_files([file]) if file else ""
    if name.startswith((CHAT_PREFIX, QUESTIONS_PREFIX)):
        path = find_source(name.partition(":")[2], data_dir)
        return digest_read_files(list_folder(path, is_row_file).files if path.is_dir() else [path])
    if name == EMBEDDED or name in (*PUBLIC_TASKS, *CONVERSATION_SETS) or is_generated_source(name):
        return ""
    if name in PUBLIC_SETS and not Path(name).exists():
        return ""
    content = read.get("content") if isinstance(read, dict) else None
    return content if isinstance(content, str) else DocumentPreparer(Path(), data_dir).digest_source(name)
