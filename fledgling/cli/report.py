"""`fledgling report`: a run directory as one self-contained page, and its evaluations in the terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fledgling.cli.options import Json


def report(run: Path, /, *, out: Path | None = None, as_json: Json = False) -> None:
    """Write RUN/report.html and print the evaluations of each stage.

    Parameters
    ----------
    run
        A run directory, finished or not.
    out
        The file to write instead of RUN/report.html, as for a run that is read-only.
    """
    from fledgling.report import build_report, make_evals_table, make_predictions_table, summarize_run

    if as_json:
        print(json.dumps(summarize_run(run), indent=2))
        return
    from fledgling.record.outside import require_no_part_of_run
    from fledgling.report.terminal_table import print_table

    if out is not None and out.resolve() != (run / "report.html").resolve():
        require_no_part_of_run(out)
    page = build_report(run, out)
    for line in summarize_run(run)["unreadable"]:
        print(f"not read: {line}", file=sys.stderr)
    for shown in (make_evals_table(run), make_predictions_table(run)):
        if shown.row_count:
            print_table(shown)
    print(f"report: {page}")
