"""Tests the comparison of families: counts per block, and the table."""

import json

from fledgling.cli import main
from fledgling.plan.compare import compare_families, format_family_tables
from fledgling.plan.parameters import COMPONENTS


def test_blocks_of_all_families_have_about_twelve_squares_of_the_width():
    families = compare_families((12,), 65_536, 2_048)
    assert [entry["family"] for entry in families] == ["fledgling", "gpt2", "llama"]
    assert all(11 < entry["block"]["parameters_per_width_squared"] < 13 for entry in families)
    assert [entry["block"]["feed_forward_matrices"] for entry in families] == [2, 2, 3]
    for entry in families:
        assert sum(entry["parameters"][name] for name in COMPONENTS) == entry["parameters"]["total"], (
            "all are in the table"
        )


def test_the_table_has_one_column_per_family_and_one_block_per_depth():
    text = format_family_tables(compare_families((2, 4), 1_024, 256))
    assert text.count("depth 2, context 256, 1,024 entries") == text.count("depth 4, context 256, 1,024 entries") == 1
    assert "training FLOPs a token, full attention" in text, "the square of the context is counted in full"
    assert "GELU" in text and "SwiGLU" in text and "ReLU^2" in text


def test_the_command_prints_the_entries_as_json(capsys):
    assert main(["plan", "compare", "--depth", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3
