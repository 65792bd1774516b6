"""`fledgling data overlap`: which evaluation items occur in training text, by runs of 13 words."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fledgling.cli.lists import NameList
from fledgling.cli.options import DataDir, Json
from fledgling.config import UserError
from fledgling.record.jsonl import format_bytes

MAX_SHOWN = 3  # matches printed for each set; --json has all


def overlap(
    *sources: str,
    tasks: NameList = (),
    items: NameList = (),
    words: int = 13,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Report which evaluation items share a run of 13 words with training text.

    Parameters
    ----------
    sources
        Training text, as a mixture names it: "embedded", files, folders, public sets, tasks (their training split),
        chat:PATH.
    tasks
        Tasks whose test split is searched for, separated by commas: arc_easy, arc_challenge, mmlu, gsm8k, humaneval,
        questions:PATH.
    items
        JSONL files, separated by commas, of which each row is an item with all its texts.
    words
        Length of a run, in words.
    """
    from fledgling.tasks.contamination import measure_contamination

    if not sources or words < 2:
        raise UserError(f"sources {list(sources)}, --words {words}: expected at least one source and 2 words")

    def show_progress(documents: int, size: int, seconds: float) -> None:
        print(f"{documents:,} documents, {format_bytes(size)}, {format_bytes(size / seconds)}/s", file=sys.stderr)

    report = measure_contamination(sources, tasks, items, words, data_dir, show_progress)
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print_report(report)


def _print_report(report: dict[str, Any]) -> None:
    size = f"{report['documents']:,} documents, {format_bytes(report['bytes'])}"
    print(f"runs of {report['words']} words in {', '.join(report['sources'])}: {size}, {report['seconds']} s")
    for name, item_set in report["sets"].items():
        short = item_set["items"] - item_set["searchable"]
        unknown = f"; {short:,} more have fewer than {report['words']} words and are not searched for" if short else ""
        print(f"{Path(name).stem:<20} {item_set['overlapping']:>6,} of {item_set['searchable']:,} items{unknown}")
        for match in item_set["matches"][:MAX_SHOWN]:
            print(f"  item {match['item']}, {match['origin']}: {match['words']}")
