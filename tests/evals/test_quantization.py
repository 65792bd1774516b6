"""A quantized copy of a checkpoint: its size, its quality, and what is rejected."""

import pytest

from fledgling.config import UserError
from fledgling.evals.quantization import quantize_checkpoint
from fledgling.record.checkpoint import save_checkpoint


@pytest.fixture
def checkpoint(engine, tmp_path):
    engine.tokenizer.save(tmp_path / "tokenizer.json")
    state = {"model": engine.source.config.to_dict(), "step": 3}
    files = {"tokenizer.json": tmp_path / "tokenizer.json"}
    return save_checkpoint(tmp_path / "source", 3, {"model": engine.source.state_dict()}, state, files)


def test_a_quantized_copy_is_as_small_as_planned_and_measured_on_the_same_text(checkpoint, tmp_path):
    (tmp_path / "text.txt").write_text("Which stone stands at place one? Respond only with the letter. " * 9)
    copy = quantize_checkpoint(checkpoint, tmp_path / "small", bits=8, group_size=32)
    sizes = copy.count_bytes()
    assert copy.path.name == checkpoint.name and sizes["packed"] == sizes["predicted"] < sizes["float32"] / 2
    [row] = copy.measure_quality(str(tmp_path / "text.txt"), questions=0)
    assert row["name"] == "bits_per_byte" and row["before"]["n"] == row["after"]["n"]
    assert row["change"]["value"] == pytest.approx(row["after"]["value"] - row["before"]["value"])
    assert 0 < abs(row["change"]["value"]) < 0.1
    with pytest.raises(UserError, match="quantized again"):
        quantize_checkpoint(copy.path, tmp_path / "smaller")
