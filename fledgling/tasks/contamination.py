"""Which evaluation items share an n-gram with training text: the search of `corpora.ngram_overlap`, by names of sets.

Items are the test splits of public tasks, or the rows of JSONL files. Training text is what a mixture names: documents,
training splits of tasks, and conversations. Start with `measure_contamination`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fledgling.config import UserError
from fledgling.corpora.document import Document
from fledgling.corpora.ngram_overlap import NGRAM_WORDS, find_overlap
from fledgling.corpora.prepare import read_source
from fledgling.files import read_rows, resolve_data_root
from fledgling.tasks import is_file_source, is_generated_source, load_source, load_task
from fledgling.tasks.dataset import TEST, DatasetTask
from fledgling.tasks.epoch_reader import EpochReader
from fledgling.tasks.task import TRAIN


def measure_contamination(
    sources: Iterable[str],
    tasks: Iterable[str],
    item_files: Iterable[str],
    ngram_words: int = NGRAM_WORDS,
    data_dir: str | Path | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, Any]:
    """Returns which items share a run of `ngram_words` words with a document of the sources.

    Args:
        sources: training text, as a mixture names it.
        tasks: public tasks whose test split is searched for.
        item_files: JSONL files, of which each row is an item with all its strings.
        progress: is called with documents, bytes and seconds so far.

    Returns:
        sources, words, documents, bytes, seconds, and sets: name -> {items, searchable, overlapping, matches}, where a
        match is {item, origin, words}, the first one of its item. Items with fewer words than a run are not searchable:
        they cannot be found and are not known to be clean.

    Raises:
        UserError: for generated tasks, and if there is nothing to search for.
    """
    root, sources = resolve_data_root(data_dir), list(sources)
    item_sets = {**read_test_splits(tasks, root), **_read_item_files(item_files, root)}
    if not item_sets:
        raise UserError("nothing to search for; name --tasks, such as mmlu,gsm8k, or --items with a JSONL file")
    owners = [(name, number) for name, texts in item_sets.items() for number in range(len(texts))]
    start = time.monotonic()

    def report_progress(documents: int, size: int) -> None:
        if progress:
            progress(documents, size, time.monotonic() - start)

    documents = (document for source in sources for document in _read_training_documents(source, root))
    items = [text for texts in item_sets.values() for text in texts]
    overlap = find_overlap(items, documents, ngram_words, report_progress)
    return {
        "sources": sources,
        "words": ngram_words,
        "documents": overlap.num_documents,
        "bytes": overlap.num_bytes,
        "seconds": round(time.monotonic() - start, 1),
        "sets": {
            name: {
                "items": len(texts),
                "searchable": sum(owners[item][0] == name for item in overlap.searchable),
                "overlapping": sum(owners[item][0] == name for item in overlap.matches),
                "matches": [
                    {"item": owners[item][1], "origin": match.origin, "words": match.words}
                    for item, match in sorted(overlap.matches.items())
                    if owners[item][0] == name
                ],
            }
            for name, texts in item_sets.items()
        },
    }


def read_test_splits(names: Iterable[str], root: str | Path | None) -> dict[str, list[str]]:
    """Returns the texts of the test split of each task."""
    texts = {}
    for name in names:
        task = load_task(name, root)
        if not isinstance(task, DatasetTask):
            raise UserError(f"{name} is generated: a hash keeps its words and numbers apart; name a public set")
        texts[name] = [example.source_text for example in task.examples(TEST)]
    return texts


def _read_item_files(names: Iterable[str], root: Path) -> dict[str, list[str]]:
    """Returns the text of each row of some JSONL files."""
    texts = {}
    for name in names:
        path = Path(name) if Path(name).exists() else root / name
        texts[name] = ["\n".join(_iterate_strings(row)) for row, _ in read_rows(path)]
    return texts


def _iterate_strings(value: Any) -> Iterator[str]:
    """Yields every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _iterate_strings(inner)


def _read_training_documents(source: str, root: Path) -> Iterable[Document]:
    """Yields the texts of a source: documents as they are, and the messages of a conversation as one text."""
    if is_generated_source(source):
        raise UserError(f"{source} is generated without end; name a source of documents or conversations")
    if not is_file_source(source):
        yield from read_source(source, root)
        return
    conversations = load_source(source, root)
    if isinstance(conversations, DatasetTask):
        for number, example in enumerate(conversations.examples(TRAIN)):
            yield Document(example.source_text, origin=f"{source} row {number}")
        return
    for number, conversation in EpochReader(conversations, seed=0).iterate_numbered():
        text = "\n".join(_iterate_strings([message["content"] for message in conversation["messages"]]))
        yield Document(text, origin=f"{source} {number}")
