"""The benchmark of clients reports every check, and a program of checks that fails."""

import sys

from benchmarks.clients import format_clients, run_checks


def test_results_and_a_programs_failure_are_rows(tmp_path):
    program = tmp_path / "checks.py"
    line = '{"client": "a", "version": "1", "what": "chat", "result": "answered"}'
    program.write_text(f"import sys\nprint('noise')\nprint({line!r})\nsys.exit('out of luck')\n")
    rows = run_checks([sys.executable, str(program)])
    assert [row["result"] for row in rows] == ["answered", "out of luck"]
    table = format_clients({"rows": rows})
    assert "| a | 1 | chat | answered |" in table and "1 of 2 answered" in table
