"""Tests the page of a sweep and the commands that print it."""

import json
import re

from fledgling.cli import main
from fledgling.scaling.sweep_page import build_sweep_page


def test_the_page_is_self_contained(sweep_dir, analysis):
    page = build_sweep_page(analysis).read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert page.count("<svg") == 6 and "<script" not in page
    assert not re.search(r"(src|href)=", page)
    assert "nan" not in re.sub(r"nanochat", "", page) and "d3-1.6e14" in page


def test_fit_prints_a_table_and_json(sweep_dir, capsys):
    assert main(["scaling", "fit", str(sweep_dir)]) == 0
    output = capsys.readouterr().out
    assert "held out" in output and "check d3-1.6e14: predicted 1.5000 (1.4800 to 1.5200)" in output
    assert main(["scaling", "fit", str(sweep_dir), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"runs", "fits", "checks", "page"} <= set(found)
    assert {"surface", "isoflop_curves", "frontier", "held_out"} <= set(found["fits"][0])
    assert found["checks"][0]["within_interval"] in (True, False)
