"""`fledgling checkpoint`: checks saved checkpoints for corruption."""

from __future__ import annotations

import json
import sys

from cyclopts import App

from fledgling.cli.options import Json

app = App(name="checkpoint", help="Check the checkpoints of a run, file by file.")


@app.command
def verify(path: str, /, *, as_json: Json = False) -> int:
    """Read every file of every checkpoint and compare it with the size and SHA-256 of the manifest.

    Exits with 1 when a file is corrupt or missing, or cannot be read, and names each one.

    Parameters
    ----------
    path
        A checkpoint, a stage or a run directory.
    """
    from fledgling.record.checkpoint import inspect_checkpoint, list_checkpoints
    from fledgling.record.jsonl import format_bytes

    reports = []
    for checkpoint in list_checkpoints(path):
        if sys.stderr.isatty():
            print(f"checking {checkpoint}", file=sys.stderr)
        report = inspect_checkpoint(checkpoint)
        reports.append(report)
        if as_json:
            continue
        state = "valid" if report["valid"] else "CORRUPT" if report["corrupt"] else "CANNOT BE READ, may be whole"
        print(f"{report['path']}  {state}, {len(report['files'])} files, {format_bytes(report['bytes'])}")
        for name, corruption in report["files"].items():
            if corruption:
                print(f"  {name}: {corruption}")
    corrupt = sum(report["corrupt"] for report in reports)
    unreadable = sum(not report["valid"] for report in reports) - corrupt
    if as_json:
        print(json.dumps({"checkpoints": reports, "corrupt": corrupt, "unreadable": unreadable}, indent=2))
    else:
        found = [f"{count} {what}" for count, what in ((corrupt, "corrupt"), (unreadable, "cannot be read")) if count]
        print(f"{len(reports)} checkpoints, {', '.join(found) or 'all valid'}")
    return 1 if corrupt or unreadable else 0
