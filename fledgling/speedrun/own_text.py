"""How much of the user's own documents a run prepares, counted from the files that are present."""

from __future__ import annotations

from fledgling.config import Recipe, RunConfig, StageConfig, UserError
from fledgling.corpora.prepare import EMBEDDED, MAX_IN_MEMORY_BYTES, find_source
from fledgling.corpora.readers import estimate_text_bytes, list_source_files
from fledgling.plan.stage_seconds import OwnText
from fledgling.tasks import is_file_source, is_generated_source


def count_own_text(recipe: Recipe) -> dict[str, OwnText]:
    """Returns the bytes of the user's own documents that each text stage is the first to read, where they are present.

    What the tokenizer is trained on counts for the first stage, which prepares it.
    """
    found, seen = dict[str, OwnText](), set[str]()
    for number, stage in enumerate(recipe.stages):
        table = recipe.stage_config(stage)
        mixture = table.mixture if isinstance(table, StageConfig) else {}
        trained = recipe.tokenizer.sources if number == 0 else ()
        names = dict.fromkeys([*trained, *(name for name, weight in mixture.items() if weight > 0)])
        sizes = {name: size for name in names if name not in seen and (size := count_document_bytes(recipe.run, name))}
        seen |= set(names)
        large = sum(size for size in sizes.values() if size > MAX_IN_MEMORY_BYTES)
        most = min(recipe.tokenizer.max_characters, sum(sizes.get(name, 0) for name in trained))
        found[stage] = OwnText(sum(sizes.values()) - large, large, most)
    return found


def count_document_bytes(run: RunConfig, source: str) -> int:
    """Returns the bytes of the text of a source of documents; 0 for any other, and where it is not present."""
    if source == EMBEDDED or is_generated_source(source) or is_file_source(source):
        return 0
    try:
        return sum(map(estimate_text_bytes, list_source_files(find_source(source, run.data_dir))))
    except (OSError, UserError):
        return 0  # training reports it
