"""The data folder."""

from pathlib import Path

from fledgling.files import list_folder, resolve_data_root


def test_the_data_root_is_the_argument_then_the_variable_then_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEDGLING_DATA", str(tmp_path))
    assert resolve_data_root() == tmp_path and resolve_data_root("~/x") == Path.home() / "x"
    monkeypatch.delenv("FLEDGLING_DATA")
    assert resolve_data_root() == Path.home() / ".cache" / "fledgling"


def test_the_card_of_a_folder_of_rows_is_no_document_and_is_named(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("README.md", "notes.md", "data/README.md", "data/train.parquet"):
        (tmp_path / name).write_text("x")
    found = list_folder(tmp_path, lambda path: True)
    assert [file.relative_to(tmp_path).as_posix() for file in found.files] == [
        *("data/README.md", "data/train.parquet", "notes.md")
    ]
    assert "1 card of the data (first: README.md)" in found.describe()
    (tmp_path / "data/train.parquet").unlink()
    assert len(list_folder(tmp_path, lambda path: True).files) == 3, "a folder of prose"
