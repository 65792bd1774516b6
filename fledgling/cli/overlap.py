"""`fledgling data overlap`: which evaluation items stand in training text, by runs of 13 words."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fledgling.cli.options import Json
from fledgling.config import UserError

if TYPE_CHECKING:
    from fledgling.corpora.document import Document

MAX_SHOWN = 3  # matches of each set printed; --json has all
Names = Annotated[tuple[str, ...], Parameter(help="Names, with commas between or the option repeated.")]


def overlap(
    *sources: str,
    tasks: Names = (),
    items: Names = (),
    words: int = 13,
    data_dir: Annotated[
        Path | None, Parameter(name="--data-dir", help="Where data lies; else FLEDGLING_DATA, else ~/.cache/fledgling.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Report which evaluation items share a run of 13 words with training text.

    Parameters
    ----------
    sources
        What is trained on, as a mixture names it: "embedded", files, folders, public sets, tasks (their
        training split), chat:PATH.
    tasks
        Whose test split is looked for: arc_easy, arc_challenge, mmlu, gsm8k, humaneval, questions:PATH.
    items
        Other sets: JSONL files, of which each row is an item with all its texts.
    words
        Length of a run.
    """
    from fledgling.corpora.contamination import OverlapReport
    from fledgling.corpora.contamination import find_overlap as compare
    from fledgling.files import resolve_data_root

    if not sources or words < 2:
        raise UserError(f"sources {list(sources)}, --words {words}: expected at least one source and 2 words")
    root = resolve_data_root(data_dir)
    wanted = {**_read_tasks(_split_names(tasks), root), **_read_items(_split_names(items), root)}
    if not wanted:
        raise UserError("nothing to look for; name --tasks, such as mmlu,gsm8k, or --items with a JSONL file")
    owner = [(name, number) for name, texts in wanted.items() for number in range(len(texts))]
    began = time.monotonic()

    def told(documents: int, size: int) -> None:
        speed = size / 1e6 / (time.monotonic() - began)
        print(f"{documents:,} documents, {size / 1e6:,.0f} MB, {speed:.0f} MB/s", file=sys.stderr)

    read = (document for source in sources for document in _read_source(source, root))
    found: OverlapReport = compare([text for texts in wanted.values() for text in texts], read, words, told)
    report: dict[str, Any] = {
        "sources": list(sources),
        "words": words,
        "documents": found.num_documents,
        "bytes": found.num_bytes,
        "seconds": round(time.monotonic() - began, 1),
        "sets": {
            name: {
                "items": len(texts),
                "overlapping": sum(owner[item][0] == name for item in found.matches),
                "matches": [
                    {"item": owner[item][1], "origin": match.origin, "words": match.words}
                    for item, match in sorted(found.matches.items())
                    if owner[item][0] == name
                ],
            }
            for name, texts in wanted.items()
        },
    }
    print(json.dumps(report, indent=2, ensure_ascii=False)) if as_json else _print_report(report)


def _print_report(report: dict[str, Any]) -> None:
    size = f"{report['documents']:,} documents, {report['bytes'] / 1e6:,.1f} MB"
    print(f"runs of {report['words']} words in {', '.join(report['sources'])}: {size}, {report['seconds']} s")
    for name, one in report["sets"].items():
        print(f"{Path(name).stem:<20} {one['overlapping']:>6,} of {one['items']:,} items")
        for match in one["matches"][:MAX_SHOWN]:
            print(f"  item {match['item']}, {match['origin']}: {match['words']}")


def _split_names(given: tuple[str, ...]) -> list[str]:
    return [name for part in given for name in part.split(",") if name]


def _read_tasks(names: list[str], root: Path) -> dict[str, list[str]]:
    from fledgling.tasks import load_task
    from fledgling.tasks.dataset import TEST, DatasetTask

    found = {}
    for name in names:
        task = load_task(name, root)
        if not isinstance(task, DatasetTask):
            raise UserError(f"{name} is generated: its words and numbers are kept apart by a hash; name a public set")
        found[name] = [item.source_text for item in task.examples(TEST)]
    return found


def _read_items(paths: list[str], root: Path) -> dict[str, list[str]]:
    from fledgling.files import read_rows

    found = {}
    for given in paths:
        path = Path(given) if Path(given).exists() else root / given
        found[given] = ["\n".join(_iterate_strings(row)) for row, _ in read_rows(path)]
    return found


def _iterate_strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _iterate_strings(inner)


def _read_source(source: str, root: Path) -> Iterator[Document]:
    """The texts of a source: documents as they are, a conversation's messages as one text."""
    from fledgling.corpora.document import Document
    from fledgling.corpora.embedded import harvest_embedded
    from fledgling.corpora.readers import read_documents
    from fledgling.tasks import SKILLS, is_file_source
    from fledgling.tasks import load_source as read
    from fledgling.tasks.dataset import DatasetTask
    from fledgling.tasks.task import TRAIN

    if source == "embedded":
        yield from harvest_embedded()
    elif source in SKILLS:
        raise UserError(f"{source} is generated without end; name a source of documents or conversations")
    elif is_file_source(source):
        conversations = read(source, root)
        if isinstance(conversations, DatasetTask):
            for number, item in enumerate(conversations.examples(TRAIN)):
                yield Document(item.source_text, origin=f"{source} row {number}")
            return
        for number in range(len(conversations)):
            messages = conversations.get_train_example(number, 0)["messages"]
            yield Document("\n".join(_iterate_strings([m["content"] for m in messages])), origin=f"{source} {number}")
    else:
        yield from read_documents(Path(source) if Path(source).exists() else root / source)
