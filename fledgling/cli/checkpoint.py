"""`fledgling checkpoint`: whether what a run saved is still what it saved."""

from __future__ import annotations

import json
import sys

from cyclopts import App

from fledgling.cli.options import Json

app = App(name="checkpoint", help="Check the checkpoints of a run, file by file.")


@app.command
def verify(path: str, /, *, as_json: Json = False) -> int:
    """Read every file of every checkpoint and compare it with the size and SHA-256 of the manifest.

    Exits with 1 when something is damaged or missing, naming each bad file.

    Parameters
    ----------
    path
        A checkpoint, a stage or a run directory.
    """
    from fledgling.record.checkpoint import inspect_checkpoint, list_checkpoints
    from fledgling.record.jsonl import format_bytes

    found = []
    for one in list_checkpoints(path):
        if sys.stderr.isatty():
            print(f"checking {one}", file=sys.stderr)
        told = inspect_checkpoint(one)
        found.append(told)
        if as_json:
            continue
        state = "whole" if told["whole"] else "DAMAGED"
        print(f"{told['path']}  {state}, {len(told['files'])} files, {format_bytes(told['bytes'])}")
        for name, problem in told["files"].items():
            if problem:
                print(f"  {name}: {problem}")
    damaged = sum(not told["whole"] for told in found)
    if as_json:
        print(json.dumps({"checkpoints": found, "damaged": damaged}, indent=2))
    else:
        print(f"{len(found)} checkpoints, {f'{damaged} damaged' if damaged else 'all whole'}")
    return 1 if damaged else 0
