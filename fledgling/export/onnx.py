"""Writes a model as an ONNX graph: tokens (batch, time) int64 -> logits (batch, time, vocabulary) float32.

PyTorch's own exporter traces it (`torch.onnx.export`; an extra: pip install "fledgling[onnx]"). The graph has no cache:
a program that generates with it reads the whole text for every token.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from fledgling.config import UserError
from fledgling.model.attention import Attention
from fledgling.model.transformer import Transformer
from fledgling.record import make_write_error
from fledgling.record.durable import make_directory, replace_file

OPSET = 18


class _Logits(nn.Module):
    """The logits of a row, with attention as one product under a mask."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = Transformer(model.config)
        self.model.load_state_dict(model.state_dict())
        self.model.use_dense_masks = True
        for module in self.model.modules():
            if isinstance(module, Attention):
                module.cuts_rows = False

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.compute_logits(self.model(tokens))


def write_onnx(path: Path, model: Transformer) -> Path:
    """Writes the file in one rename and returns its path.

    Args:
        model: on the CPU, in float32, not quantized.

    Raises UserError where a package is missing, for a model that is larger than a file of ONNX may be, and for a write
    error.
    """
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise UserError(f'the {package} package is not installed; pip install "fledgling[onnx]"')
    if 4 * model.count_parameters() > 1 << 31:
        raise UserError("an ONNX file holds at most 2 GiB, and this model's weights have more")
    context = model.config.context
    time = torch.export.Dim("time", min=2, max=context)
    example = torch.zeros(2, min(8, context), dtype=torch.int64)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        make_directory(path.parent)
        with torch.inference_mode():
            program = torch.onnx.export(
                _Logits(model).eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["tokens"],
                output_names=["logits"],
                dynamic_shapes={"tokens": {0: torch.export.Dim("batch", min=1, max=1 << 16), 1: time}},
                verbose=False,
            )
            assert program is not None
            program.save(str(temporary), external_data=False)
        replace_file(temporary, path)
    except OSError as problem:
        raise make_write_error(path, problem) from None
    finally:
        with suppress(OSError):  # no directory, so no file
            temporary.unlink(missing_ok=True)
    return path
