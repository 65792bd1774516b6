"""`fledgling data inspect`: what a file of the user's holds, and what a model would learn of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from fledgling.cli.lists import NameList
from fledgling.cli.options import DataDir, Json
from fledgling.config import UserError, load_recipe


def inspect(
    source: str,
    /,
    *,
    run: Annotated[str | None, Parameter(help="A run, whose tokenizer and context count tokens and cuts.")] = None,
    exams: NameList = (),
    rows: int = 100_000,
    page: Path | None = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show what a file or folder holds: its forms, what is learned, cut and left out, repeats, overlap with exams.

    Parameters
    ----------
    source
        Documents, conversations or pairs in any form, perhaps with the names of its columns: PATH?prompt=Frage.
    exams
        Public tasks whose test splits are searched for, separated by commas; default: all that were fetched.
    rows
        Rows that are read at most.
    page
        Also write a page of it, an HTML file.
    """
    from fledgling.record.outside import require_no_part_of_run
    from fledgling.tasks.inspection import inspect_data
    from fledgling.text.tokenizer import Tokenizer

    if rows < 1:
        raise UserError(f"--rows is {rows}; expected at least 1")
    if page is not None:
        require_no_part_of_run(page)
    tokenizer = context = None
    if run is not None:
        recipe = load_recipe(run)
        tokenizer = Tokenizer.load(Path(recipe.run.out) / "tokenizer")
        context = recipe.model.context
    found = inspect_data(source, tokenizer, context, exams, data_dir, rows)
    if page is not None:
        from fledgling.report.data_page import build_data_page

        print(build_data_page(found, page), file=sys.stderr)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _print_report(found)


def _print_report(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    from fledgling.report.data_page import describe_exam, list_facts

    forms = ", ".join(f"{count:,} {form}" for form, count in found["forms"].items())
    share, unit = 100 * found["learned"] / max(1, found["total"]), found["unit"]
    lengths = ", ".join(f"{name} {value:,}" for name, value in found["lengths"].items())
    rows = [
        (found["kind"], f"{found['rows']:,} rows ({forms})"),
        (unit, f"{found['total']:,}, of which {found['learned']:,} ({share:.0f} %) are learned; rows: {lengths}"),
        *list_facts(found),
        *((f"overlap with {name}", text) for name, text in map(lambda e: describe_exam(*e), found["overlap"].items())),
    ]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")
    console = Console(highlight=False, soft_wrap=True)
    for example in found["examples"]:
        print(f"\n{example['place']}  {example['form']}")
        line = Text()
        for piece in example["pieces"]:  # marked where there are no colors too
            mark = piece["learned"]
            line.append(f"[{piece['text']}]" if mark and not console.color_system else piece["text"], "reverse" * mark)
        console.print(line)
