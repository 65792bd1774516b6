"""Parquet is read in memory that does not grow with what the pages hold."""

import pyarrow
import pyarrow.parquet
import pytest

from fledgling.config import UserError
from fledgling.corpora.readers import read_documents
from fledgling.files import opening, parquet, read_rows
from fledgling.files.parquet import BATCH_ROWS, count_batch_rows, iterate_batches, open_parquet


def write(path, values, **options):
    pyarrow.parquet.write_table(pyarrow.table({"text": values}), path, **options)
    return path


def test_rows_of_any_length_are_read_in_batches_of_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_ROW_BYTES", 1 << 20)
    for name, values, options in (
        ("one_value", ["x" * 300_000] * 600, {"dictionary_pagesize_limit": 1 << 20}),  # stored once
        ("other_values", [f"{n}{'y' * 300_000}" for n in range(20)], {"use_dictionary": False}),
    ):
        path = write(tmp_path / name, values, compression="zstd", **options)
        with open_parquet(path) as table:
            assert path.stat().st_size < 30_000 and max(b.nbytes for b in iterate_batches(table, path)) < 2 << 20
            assert sum(b.num_rows for b in iterate_batches(table, path)) == len(values)
    path = write(tmp_path / "short", [f"row {n}" for n in range(600)], row_group_size=300)
    with open_parquet(path) as table:
        assert [b.num_rows for b in iterate_batches(table, path)] == [BATCH_ROWS, 300 - BATCH_ROWS] * 2
        assert [b.num_rows for b in iterate_batches(table, path, [1])] == [BATCH_ROWS, 300 - BATCH_ROWS]
        assert count_batch_rows(table.metadata.row_group(0)) == BATCH_ROWS


@pytest.mark.parametrize(("limit", "problem"), [("rows", "its rows are longer than"), ("file", "expands to more than")])
def test_pages_that_expand_without_measure_are_one_line_for_rows_and_documents(tmp_path, monkeypatch, limit, problem):
    path = write(tmp_path / "a.parquet", ["x" * (1 << 20)], compression="zstd", use_dictionary=False)
    if limit == "rows":
        monkeypatch.setattr(parquet, "MAX_ROW_BYTES", 1 << 18)
    else:
        monkeypatch.setattr(opening, "MIN_EXPANSION_LIMIT", 1 << 19)
        monkeypatch.setattr(opening, "MAX_EXPANSION", 100)
    for read in (read_rows, read_documents):
        with pytest.raises(UserError, match=f"a.parquet: {problem}"):
            list(read(path))
