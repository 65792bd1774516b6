"""A user's measurements are kept in one folder; one that cannot be written stops nothing."""

import json

from fledgling.record.user_cache import find_cache_folder, write_cache_file


def test_a_file_is_written_into_the_folder_that_the_environment_names(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path / "deep" / "cache"))
    assert write_cache_file("peaks.json", {"a": 1.5}) == ""
    assert json.loads((find_cache_folder() / "peaks.json").read_text()) == {"a": 1.5}
    monkeypatch.setenv("FLEDGLING_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_cache_folder() == tmp_path / "fledgling"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path / "cache"))
    line = write_cache_file("peaks.json", {})
    path = tmp_path / "cache" / "peaks.json"
    assert line.startswith(f"{path} cannot be written (") and line.endswith(
        "); set FLEDGLING_CACHE to a folder that can be"
    )
