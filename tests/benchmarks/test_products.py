"""The benchmark of products multiplies what it says, and its shares are of the measured limits."""

import pytest

from benchmarks import products
from fledgling.config import UserError
from fledgling.kernels import native


@pytest.mark.parametrize("bits", products.BITS)
def test_a_set_has_about_the_bytes_that_are_asked(bits):
    matrices, total = products.make_matrices(bits, (64, 128), 100_000)
    one = total / len(matrices)
    assert 100_000 <= total < 100_000 + one and one >= 64 * 128 * bits / 8
    assert all((matrix.rows, matrix.columns, matrix.bits) == (64, 128, bits) for matrix, _ in matrices)


def test_shares_are_of_the_limits():
    result = {
        "threads": 2,
        "reads": [{"megabytes": 24, "limit": 50e9, "bits": 8, "speeds": [40e9, 25e9, 50e9]}],
        "peak": 100e9,
        "products": [{"rows": 8, "bits": 4, "flops": [90e9, 120e9, 60e9]}],
    }
    table = products.format_products(result)
    assert "80%" in table and "50%" in table and "120%" in table and "100 GFLOP/s" in table


def test_without_native_kernels_there_is_nothing_to_measure(monkeypatch):
    monkeypatch.setattr(native, "load_native_library", lambda: None)
    with pytest.raises(UserError, match="no native kernels here"):
        products.measure_products([1], [8], 1)
