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

SHOWN = 3  # matches of each set printed; --json has all
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
    from fledgling.corpora.overlap import Overlap
    from fledgling.corpora.overlap import overlap as compare
    from fledgling.files import data_root

    if not sources or words < 2:
        raise UserError(f"sources {list(sources)}, --words {words}: expected at least one source and 2 words")
    root = data_root(data_dir)
    wanted = {**_of_tasks(_listed(tasks), root), **_of_files(_listed(items), root)}
    if not wanted:
        raise UserError("nothing to look for; name --tasks, such as mmlu,gsm8k, or --items with a JSONL file")
    owner = [(name, number) for name, texts in wanted.items() for number in range(len(texts))]
    began = time.monotonic()

    def told(documents: int, size: int) -> None:
        speed = size / 1e6 / (time.monotonic() - began)
        print(f"{documents:,} documents, {size / 1e6:,.0f} MB, {speed:.0f} MB/s", file=sys.stderr)

    read = (document for source in sources for document in _documents(source, root))
    found: Overlap = compare([text for texts in wanted.values() for text in texts], read, words, told)
    report: dict[str, Any] = {
        "sources": list(sources),
        "words": words,
        "documents": found.documents,
        "bytes": found.size,
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
    print(json.dumps(report, indent=2, ensure_ascii=False)) if as_json else _show(report)


def _show(report: dict[str, Any]) -> None:
    size = f"{report['documents']:,} documents, {report['bytes'] / 1e6:,.1f} MB"
    print(f"runs of {report['words']} words in {', '.join(report['sources'])}: {size}, {report['seconds']} s")
    for name, one in report["sets"].items():
        print(f"{Path(name).stem:<20} {one['overlapping']:>6,} of {one['items']:,} items")
        for match in one["matches"][:SHOWN]:
            print(f"  item {match['item']}, {match['origin']}: {match['words']}")


def _listed(given: tuple[str, ...]) -> list[str]:
    return [name for part in given for name in part.split(",") if name]


def _of_tasks(names: list[str], root: Path) -> dict[str, list[str]]:
    from fledgling.tasks import get
    from fledgling.tasks.filed import TEST, Filed

    found = {}
    for name in names:
        task = get(name, root)
        if not isinstance(task, Filed):
            raise UserError(f"{name} is generated: its words and numbers are kept apart by a hash; name a public set")
        found[name] = [item.words for item in task.items(TEST)]
    return found


def _of_files(paths: list[str], root: Path) -> dict[str, list[str]]:
    from fledgling.files import rows

    found = {}
    for given in paths:
        path = Path(given) if Path(given).exists() else root / given
        found[given] = ["\n".join(_strings(row)) for row, _ in rows(path)]
    return found


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _documents(source: str, root: Path) -> Iterator[Document]:
    """The texts of a source: documents as they are, a conversation's messages as one text."""
    from fledgling.corpora.corpus import harvest
    from fledgling.corpora.document import Document
    from fledgling.corpora.sources import documents
    from fledgling.tasks import NAMES, is_read
    from fledgling.tasks import source as read
    from fledgling.tasks.filed import Filed
    from fledgling.tasks.task import TRAIN

    if source == "embedded":
        yield from harvest()
    elif source in NAMES:
        raise UserError(f"{source} is generated without end; name a source of documents or conversations")
    elif is_read(source):
        conversations = read(source, root)
        if isinstance(conversations, Filed):
            for number, item in enumerate(conversations.items(TRAIN)):
                yield Document(item.words, origin=f"{source} row {number}")
            return
        for number in range(len(conversations)):
            messages = conversations.train(number, 0)["messages"]
            yield Document("\n".join(_strings([m["content"] for m in messages])), origin=f"{source} {number}")
    else:
        yield from documents(Path(source) if Path(source).exists() else root / source)
