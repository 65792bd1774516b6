"""The measurement of a page in one file: what it prints, and one line where it cannot measure."""

import shutil

import pytest

from benchmarks.page import format_page, measure_page
from fledgling.config import UserError


def test_the_speed_is_that_of_all_answers_together():
    values = {"chromium": "1", "bytes": 1234, "ready_seconds": 0.5, "answers": [(100, 100.0), (100, 50.0)]}
    text = format_page(values)
    assert "1,234 bytes, ready after 0.50 s" in text
    assert "200 tokens in 2 answers, 67 a second; slowest answer 50" in text


def test_without_a_browser_it_says_so(monkeypatch, tmp_path):
    pytest.importorskip("playwright")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="no chromium"):
        measure_page(tmp_path / "page.html")
