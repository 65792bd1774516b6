"""An ONNX graph computes the model's logits in onnxruntime, for any batch and length."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from fledgling.config import UserError
from fledgling.export.onnx import write_onnx
from fledgling.export.parity import compare_onnx

NEEDED = ("onnx", "onnxscript", "onnxruntime")
pytestmark = pytest.mark.skipif(
    not all(map(find_spec, NEEDED)), reason='a package is not installed: pip install "fledgling[onnx]"'
)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("fledgling", {"kv_heads": 2}),
        ("gpt2", {}),
        ("fledgling", {"preset": "nanochat-2026", "depth": 2}),
    ],
)
def test_onnxruntime_writes_the_same_tokens(family, fields, make, tmp_path):
    import onnxruntime

    model = make(family, **{"depth": 1, **fields})
    path = write_onnx(tmp_path / "m.onnx", model)
    (found,) = compare_onnx(model, path, 1)
    assert found.max_difference < 1e-4 and found.greedy_matches + found.greedy_ties == found.greedy_tokens == 120
    session = onnxruntime.InferenceSession(str(path))
    rows = torch.randint(330, (3, 17), generator=torch.Generator().manual_seed(0))
    logits = session.run(None, {"tokens": rows.numpy()})[0]
    with torch.inference_mode():
        np.testing.assert_allclose(logits, model.compute_logits(model(rows)).numpy(), atol=1e-4)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_a_file_in_the_place_of_a_folder_is_one_line(tmp_path, make):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        write_onnx(tmp_path / "file" / "m.onnx", make("fledgling", depth=1))
