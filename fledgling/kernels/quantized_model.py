"""A whole model quantized: which of its matrices, what a checkpoint holds of it, and a model out of that.

The one idea: the blocks' matrices and the head are read whole for every token and become packed; of the embedding a
token reads one row, so it stays bf16 unless asked for, as do all vectors. A checkpoint keeps what memory keeps:
NAME.values and NAME.scales for each packed matrix, and `state["quantized"]` says how.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fledgling.config import ModelConfig, UserError
from fledgling.kernels import native
from fledgling.kernels.format import check_columns, check_quantization, quantize_matrix
from fledgling.kernels.quantized_tensor import QuantizedTensor
from fledgling.model.positions import make_positions
from fledgling.model.transformer import Transformer


def should_quantize(config: ModelConfig, name: str, shape: tuple[int, ...], head: bool, embedding: bool) -> bool:
    """Whether a parameter of that name is quantized. A tied matrix is both, and goes as a head."""
    if len(shape) != 2 or name.startswith("positions."):
        return False
    if name.startswith("embedding."):
        return head if config.tie_embeddings else embedding
    return head if name.startswith("head.") else True


def quantize_state_dict(
    config: ModelConfig,
    state: Mapping[str, Tensor],
    bits: int,
    group_size: int,
    head: bool = True,
    embedding: bool = False,
) -> dict[str, Tensor]:
    """A model's weights by name, as a quantized checkpoint keeps them; raises UserError where they cannot be."""
    check_quantization(bits, group_size)
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if config.tie_embeddings and name == "embedding.weight":
            continue
        if not should_quantize(config, name, tuple(tensor.shape), head, embedding):
            kept[name] = tensor.detach().to("cpu", torch.bfloat16)
            continue
        check_columns(name, tensor.shape[1], bits, group_size)
        kept[f"{name}.values"], kept[f"{name}.scales"] = quantize_matrix(tensor, bits, group_size)
    return kept


def load_quantized_model(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    quantization: Mapping[str, Any],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Transformer:
    """A model, in eval mode, whose packed matrices stay packed; raises ValueError where tensors do not fit.

    how: bits and group. dtype: of the products and of what is not packed; None is bf16 where that is quick.
    """
    device = torch.device(device)
    bits = quantization["bits"]
    if dtype is None:
        dtype = torch.bfloat16 if device.type != "cpu" or native.load_library() is not None else torch.float32
    with torch.device("meta"):
        model = Transformer(config, dtype)
    model.positions = make_positions(config)
    left = dict(tensors)
    for name, parameter in model.named_parameters():
        if f"{name}.values" in left:
            values, scales = left.pop(f"{name}.values"), left.pop(f"{name}.scales")
            _require_format(name, tuple(parameter.shape), values, scales, bits)
            tensor = QuantizedTensor(values.to(device), scales.to(device), bits, dtype)
        else:
            tensor = left.pop(name).to(device, dtype)
        if tensor.shape != parameter.shape:
            raise ValueError(f"{name}: {tuple(tensor.shape)}, expected {tuple(parameter.shape)}")
        place, _, last = name.rpartition(".")
        setattr(model.get_submodule(place), last, nn.Parameter(tensor, requires_grad=False))
    if left:
        raise ValueError(f"{next(iter(left))} belongs to no part of the model")
    if config.tie_embeddings:
        model.embedding.weight = model.head.weight
    return model.to(device).eval()


def _require_format(name: str, shape: tuple[int, ...], values: Tensor, scales: Tensor, bits: int) -> None:
    kind = {8: torch.int8, 4: torch.uint8}[bits]
    sound = values.dtype == kind and scales.dtype == torch.bfloat16 and scales.ndim == 2 and len(shape) == 2
    if not sound or tuple(values.shape) != (shape[0], shape[1] * bits // 8) or scales.shape[0] != shape[0]:
        raise ValueError(f"{name}: packed as {tuple(values.shape)} {values.dtype}, expected {shape} in {bits} bits")
    group = shape[1] // scales.shape[1] if scales.shape[1] else 0
    if group < 32 or group & (group - 1) or group * scales.shape[1] != shape[1]:
        raise ValueError(f"{name}: {scales.shape[1]} scales a row of {shape[1]}")


def require_unquantized(state: Mapping[str, Any], path: object, purpose: str) -> None:
    """Raise UserError if a checkpoint's state says that it is quantized, and the purpose needs whole weights."""
    if "quantized" in state:
        bits = state["quantized"].get("bits")
        raise UserError(
            f"{path} is quantized to {bits} bits and cannot be {purpose}: use the checkpoint it was made from"
        )


def count_weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights in memory, each counted once."""
    return sum(
        parameter.data.packed_bytes if isinstance(parameter.data, QuantizedTensor) else parameter.nbytes
        for parameter in model.parameters()
    )
