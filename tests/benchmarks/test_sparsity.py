"""The sparsity experiment at small sizes: rows have the share of zeros that they are measured for."""

import pytest
import torch

from benchmarks import sparsity


def test_products_are_timed_at_every_share_of_zeros(monkeypatch):
    monkeypatch.setattr(sparsity, "MAX_LAYERS", 4)
    rows = sparsity.measure_constructed_rows(repeats=1, shapes=((32, 128),))
    assert {row["share"] for row in rows} == set(sparsity.SHARES) and {row["dtype"] for row in rows} >= {"float32"}
    for row in rows:
        assert (row["C"], row["F"]) == (32, 128) and row["ratio"] == pytest.approx(row["whole"] / row["skipping"])
    assert len(sparsity.format_products(rows).splitlines()) == len(rows) + 1


def test_a_constructed_row_has_its_share_of_zeros():
    row = sparsity._make_row(1000, 0.8, torch.Generator().manual_seed(1))
    assert row.shape == (1, 1000) and int((row == 0).sum()) == 800


def test_models_of_each_activation_are_decoded(monkeypatch):
    monkeypatch.setattr(sparsity, "list_dtypes", lambda: [torch.float32])
    rows = sparsity.measure_decoding(repeats=1, depth=1, width=128)
    assert [row["activation"] for row in rows] == ["relu2"] * len(sparsity.SHARES) + ["gelu", "swiglu"]
    assert all(("skipping" in row) == (row["activation"] == "relu2") and row["whole"] > 0 for row in rows)
    assert all("ms a token" in sparsity.format_decoding(row) for row in rows)
