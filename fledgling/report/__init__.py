"""Reports: a run directory becomes one self-contained HTML page.

Everything here reads files and nothing else: no torch, no running process, no network. The contents of those files are
untrusted (samples are arbitrary model output), so numbers are checked and text is escaped.

Reading order: run_data.py (files -> values; unreadable.py names what cannot be read), prediction_pairs.py,
forecasts.py, samples.py and summary.py (values -> tables), run_page.py with run.html (the page of a run), data_page.py
(the page of a data set), provenance.py and page_footer.py (what a page was made from), terminal_table.py
(tables in the terminal). chart.py (inline SVG) and
template.py with base.html, macros.html and style.css are shared with `fledgling.scaling`.
"""

from fledgling.report.forecasts import make_forecasts_table
from fledgling.report.prediction_pairs import make_predictions_table
from fledgling.report.run_page import build_report
from fledgling.report.summary import make_evals_table, summarize_run

__all__ = ["build_report", "make_evals_table", "make_forecasts_table", "make_predictions_table", "summarize_run"]
