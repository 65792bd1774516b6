"""The data folder."""

from pathlib import Path

from fledgling.files import resolve_data_root


def test_the_data_root_is_the_argument_then_the_variable_then_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEDGLING_DATA", str(tmp_path))
    assert resolve_data_root() == tmp_path and resolve_data_root("~/x") == Path.home() / "x"
    monkeypatch.delenv("FLEDGLING_DATA")
    assert resolve_data_root() == Path.home() / ".cache" / "fledgling"
