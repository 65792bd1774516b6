"""Tables in the terminal: no figure is cut, however narrow the terminal is."""

import pytest
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fledgling.report.terminal_table import print_table

ROWS = [
    ("arithmetic, test wordings", "12.5 % (9-17)", "93.5 % (92-98)", "98.5 % (96-99)", "-", "200, 65 wordings"),
    ("bits per byte", "2.263 ± 0.013", "1.263 ± 0.013", "1.163 ± 0.013", "predicted before it was resumed", "64–2,560"),
]


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 300])
def test_every_word_of_a_table_is_printed_whole(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    table = Table(box=SIMPLE_HEAD, title="evaluations")
    for name in ("", "pretrain", "midtrain", "sft", "best\nconst.", "n"):
        table.add_column(name, justify="right")
    for row in ROWS:
        table.add_row(*map(Text, row))
    print_table(table)
    printed = capsys.readouterr().out
    for word in " ".join((*ROWS[0], *ROWS[1])).split():
        assert word in printed.split(), word
    assert max(map(len, printed.splitlines())) <= max(columns, 70)
    assert columns < 300 or "200, 65 wordings" in printed
