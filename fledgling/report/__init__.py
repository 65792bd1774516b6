"""The report: a run directory becomes one page that stands alone.

Everything here reads files and nothing else: no torch, no running process, no network. What stands in those
files is untrusted (samples are whatever a model said), so numbers are checked and text is escaped.

Reading order: gather.py (files -> values), summary.py (values -> the tables), page.py with page.html
(the page; its drawings are made by fledgling.report).
"""

from fledgling.report.run_page import build_report
from fledgling.report.summary import make_evals_table, make_predictions_table, summarize_run

__all__ = ["build_report", "make_evals_table", "make_predictions_table", "summarize_run"]
