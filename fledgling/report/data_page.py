"""The page of `fledgling data inspect`: a data set before it is trained on, with what is learned of it marked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fledgling.record import write_text
from fledgling.report.template import render_page


def build_data_page(found: Mapping[str, Any], path: Path) -> Path:
    """Writes the page of what `inspect_data` found to `path`, and returns it."""
    write_text(path, render_page("report", "data.html", **data_page_contents(found)))
    return path


def data_page_contents(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of the template."""
    return {
        "title": found["source"],
        "kind": found["kind"],
        "tiles": _list_tiles(found),
        "facts": list_facts(found),
        "forms": [(form, f"{count:,}") for form, count in found["forms"].items()],
        "lengths": [(name, f"{value:,}") for name, value in found["lengths"].items()],
        "unit": found["unit"],
        "repeats": [tuple(pair) for pair in found["repeats"]["examples"]],
        "overlap": [describe_exam(name, exam) for name, exam in found["overlap"].items()],
        "matches": [
            (name, match["row"], match["words"])
            for name, exam in found["overlap"].items()
            for match in exam.get("matches", ())
        ],
        "examples": found["examples"],
    }


def list_facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns (what, how much) of what is left out, changed, cut and repeated: the lines of text and page alike."""
    repeats, cut = found["repeats"], found["cut"]
    near = (
        'not searched for: pip install "fledgling[inspect]"' if repeats["near"] is None else f"{repeats['near']:,} rows"
    )
    facts = [("files", found["contents"])] if found["contents"] else []
    left_out = found["left_out"]
    facts.append(("left out", f"{left_out['rows']:,} rows" + (f"; {left_out['first']}" if left_out["first"] else "")))
    facts += [("messages", f"{count:,} {change}") for change, count in found["changed"].items()]
    if typed := found["typed_controls"]:
        facts.append(("names of control tokens", f"{typed:,} rows have some, which stay text; shown below as \\<|…|>"))
    facts += [("same text as an earlier row", f"{repeats['exact']:,} rows"), ("nearly the same", near)]
    if cut is None:
        facts.append(("cut", "not known: give --run, whose tokenizer and context decide it"))
    else:
        row = f"a row of {cut['context']:,} tokens"
        facts.append(("cut", f"{cut['rows']:,} rows are longer than {row}; {cut['tokens']:,} tokens are beyond it"))
    if found["more_rows"]:
        facts.append(("read", f"the first {found['rows']:,} rows only; --rows reads more"))
    return facts


def describe_exam(name: str, exam: Mapping[str, Any]) -> tuple[str, str]:
    """Returns an exam and how many of its items share a run of 13 words with a row."""
    if "missing" in exam:
        return name, "not searched for: its files are not under the data root"
    return name, f"{exam['overlapping']:,} of {exam['items']:,} items"


def _list_tiles(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    unit, share = found["unit"], found["learned"] / max(1, found["total"])
    return [
        (f"{found['rows']:,}", "rows", found["kind"]),
        (f"{found['total']:,}", unit, f"{found['lengths']['median']:,} in the median row"),
        (f"{100 * share:.0f} %", "learned", f"{found['learned']:,} {unit}"),
        (f"{found['repeats']['exact']:,}", "repeated rows", "the same words in the same order"),
    ]
