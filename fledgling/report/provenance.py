"""What a run came from, as rows of text: the machine, the prepared sets, the tokenizer."""

from fledgling.record.budget_end import OUTSIDE
from fledgling.record.jsonl import format_bytes
from fledgling.record.progress_bar import format_count
from fledgling.report.run_data import RunData, finite_number, nested_table, printable_text


def environment_rows(run: RunData) -> list[tuple[str, str]]:
    """Returns the environment as flat pairs of text, and the budget of a run that has one."""
    budget = printable_text(nested_table(run.forecast, "budget").get("text"))
    since = f"; {OUTSIDE}" if budget and run.has_steps_after_end else ""
    rows = [("budget", budget[:300] + since)] if budget else []
    for key, value in run.environment.items():
        if key == "memory" and finite_number(value):
            value = format_bytes(value, binary=True)
        if isinstance(value, list):
            value = ", ".join(map(str, value)) or "none"
        if value is not None:
            rows.append((key.replace("_", " "), str(value)[:300]))
    return rows


def data_rows(run: RunData) -> list[dict[str, str]]:
    """Returns counts and a fingerprint of each prepared set, and of the tokenizer."""
    rows = []
    for name, manifest in run.data.items():
        tokens, documents = finite_number(manifest.get("tokens")), finite_number(manifest.get("documents"))
        sha256 = nested_table(manifest, "files", "tokens.bin").get("sha256")
        rows.append(
            {
                "name": name,
                "documents": f"{documents:,.0f}" if documents is not None else "–",
                "tokens": format_count(tokens) if tokens is not None else "–",
                "fingerprint": sha256[:16] if isinstance(sha256, str) else "–",
            }
        )
    if run.tokenizer:
        entries, fingerprint = finite_number(run.tokenizer.get("vocab_size")), run.tokenizer.get("fingerprint")
        text = fingerprint[:16] if isinstance(fingerprint, str) else "–"
        size = f"{entries:,.0f} entries" if entries else "–"
        rows.append({"name": "tokenizer", "documents": "–", "tokens": size, "fingerprint": text})
    return rows


def reading_rows(run: RunData) -> list[tuple[str, str, str, str, str, str]]:
    """Returns what each finished stage read: stage, source, its rows, rows of a pass, passes so far, rows left."""
    rows = []
    for stage in run.stages:
        found = stage.done.get("sources")
        for each in found if isinstance(found, list) else ():
            if not isinstance(each, dict):
                continue
            keys = ("read", "rows", "passes", "remaining")
            read, size, passes, remaining = (finite_number(each.get(key)) for key in keys)
            if None in (read, size, passes, remaining):
                continue  # of a file that no fledgling wrote
            shown = (f"{read:,.0f}", f"{size:,.0f}", f"{passes:.2f}", f"{remaining:,.0f}")
            rows.append((stage.name, str(each.get("source")), *shown))
    return rows
