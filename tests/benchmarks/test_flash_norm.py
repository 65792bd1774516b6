"""The FlashNorm experiment at small sizes: every variant is timed and compared with the plain norm."""

from benchmarks.flash_norm import format_flash_norm, measure_flash_norm


def test_every_variant_has_a_ratio_to_plain():
    shapes = {"train": (("fledgling", 1, 128),), "decode": (("fledgling", 1, 128), ("llama", 1, 128))}
    rows = measure_flash_norm("float32", repeats=1, shapes=shapes)
    assert [row["what"] for row in rows] == ["train", "decode", "decode"]
    assert [sorted(row["ms"]) for row in rows] == [
        ["deferred", "plain"],
        ["deferred", "plain"],
        ["deferred", "folded", "folded, deferred", "plain"],
    ]
    assert all(row["ratio"]["plain"] == 1 and min(row["ms"].values()) > 0 for row in rows)
    assert len(format_flash_norm(rows).splitlines()) == 4
