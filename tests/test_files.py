"""Where data lies, and rows that say where they were read."""

from pathlib import Path

from fledgling.files import data_root


def test_the_data_root_is_the_one_given_then_the_variable_then_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEDGLING_DATA", str(tmp_path))
    assert data_root() == tmp_path and data_root("~/x") == Path.home() / "x"
    monkeypatch.delenv("FLEDGLING_DATA")
    assert data_root() == Path.home() / ".cache" / "fledgling"
