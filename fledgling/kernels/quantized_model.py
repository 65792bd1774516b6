"""Quantization of a whole model: which parameters, the tensors of its checkpoint, and the model loaded from them.

The blocks' matrices and the head are read whole for every token and are quantized. A token reads one row of the
embedding, so the embedding stays bf16 unless requested otherwise, and so do all vectors. A checkpoint stores what
memory holds: NAME.values and NAME.scales for each quantized matrix, and `state["quantized"]` has the bits and the group
size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fledgling.config import ModelConfig, UserError
from fledgling.kernels import native
from fledgling.kernels.format import (
    INTERLEAVED_COLUMNS,
    check_columns,
    check_quantization,
    fits_format,
    quantize_matrix,
)
from fledgling.kernels.quantized_tensor import QuantizedTensor
from fledgling.model.positions import make_positions
from fledgling.model.transformer import Transformer

VALUE_DTYPES = {8: torch.int8, 4: torch.uint8}  # of packed values, by bits


def should_quantize(config: ModelConfig, name: str, shape: tuple[int, ...], head: bool, embedding: bool) -> bool:
    """Returns whether a parameter is quantized.

    Gates of heads are not: their rows are shorter than a group.

    Args:
        name: of the parameter.
        shape: of the parameter.
        head: whether the head is quantized; a tied matrix counts as the head.
        embedding: whether an untied embedding is quantized.
    """
    if len(shape) != 2 or name.startswith("positions.") or name.endswith(".gate.weight"):
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
    """Returns the tensors of a quantized checkpoint, on the CPU: what is not quantized becomes bf16.

    A tied embedding is stored once, as the head.

    Args:
        state: the model's tensors by name.
        bits, group_size: of the format.
        head, embedding: whether these are quantized.

    Raises:
        UserError: bits or group_size are not supported, or the width of a matrix is not a multiple of the group size.
    """
    check_quantization(bits, group_size)
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if config.tie_embeddings and name == "embedding.weight":
            continue
        if not should_quantize(config, name, tuple(tensor.shape), head, embedding):
            tensors[name] = tensor.detach().to("cpu", torch.bfloat16)
            continue
        check_columns(name, tensor.shape[1], bits, group_size)
        tensors[f"{name}.values"], tensors[f"{name}.scales"] = quantize_matrix(tensor, bits, group_size)
    return tensors


def load_quantized_model(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    quantization: Mapping[str, Any],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Transformer:
    """Returns a model in eval mode whose quantized matrices stay packed in memory.

    Args:
        tensors: of `quantize_state_dict`.
        quantization: the checkpoint's `state["quantized"]`, of which the bits are read.
        dtype: of the products and of what is not quantized; None is bf16 where that is fast, else fp32.

    Raises:
        ValueError: the tensors do not fit the model, one is missing or too many, or the bits are not supported.
    """
    device = torch.device(device)
    bits = quantization.get("bits")
    if bits not in VALUE_DTYPES:
        raise ValueError(f"quantized to {bits} bits, expected {' or '.join(map(str, VALUE_DTYPES))}")
    if dtype is None:
        dtype = torch.bfloat16 if device.type != "cpu" or native.load_native_library() is not None else torch.float32
    with torch.device("meta"):
        model = Transformer(config, dtype)
    model.positions = make_positions(config)
    unused = dict(tensors)
    for name, parameter in model.named_parameters():
        if f"{name}.values" in unused:
            values, scales = _take_tensor(unused, f"{name}.values"), _take_tensor(unused, f"{name}.scales")
            _require_format(name, tuple(parameter.shape), values, scales, bits)
            tensor: Tensor = QuantizedTensor(values.to(device), scales.to(device), bits, dtype)
        else:
            tensor = _take_tensor(unused, name).to(device, dtype)
        if tensor.shape != parameter.shape:
            raise ValueError(f"{name}: {tuple(tensor.shape)}, expected {tuple(parameter.shape)}")
        module_name, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module_name), attribute, nn.Parameter(tensor, requires_grad=False))
    if unused:
        raise ValueError(f"{next(iter(unused))} is not a tensor of the model")
    if config.tie_embeddings:
        model.embedding.weight = model.head.weight
    return model.to(device).eval()


def _take_tensor(tensors: dict[str, Tensor], name: str) -> Tensor:
    """Removes a tensor and returns it. Raises ValueError if there is none of that name."""
    if name not in tensors:
        raise ValueError(f"{name} is missing")
    return tensors.pop(name)


def _require_format(name: str, shape: tuple[int, ...], values: Tensor, scales: Tensor, bits: int) -> None:
    """Raises ValueError unless values and scales are those of a matrix of that shape."""
    dtype = VALUE_DTYPES[bits]
    has_format = values.dtype == dtype and scales.dtype == torch.bfloat16 and scales.ndim == 2 and len(shape) == 2
    if not has_format or tuple(values.shape) != (shape[0], shape[1] * bits // 8) or scales.shape[0] != shape[0]:
        raise ValueError(f"{name}: packed as {tuple(values.shape)} {values.dtype}, expected {shape} in {bits} bits")
    if not fits_format(shape[1], scales.shape[1], bits):
        raise ValueError(
            f"{name}: rows of {shape[1]} columns with {scales.shape[1]} scales, expected groups of a power of two from "
            f"32{f', and a multiple of {INTERLEAVED_COLUMNS} columns for 4 bits' if bits == 4 else ''}"
        )


def require_unquantized(state: Mapping[str, Any], path: object, purpose: str) -> None:
    """Raises UserError if a checkpoint is quantized; purpose completes "cannot be ...", such as "exported"."""
    if "quantized" in state:
        bits = state["quantized"].get("bits")
        raise UserError(
            f"{path} is quantized to {bits} bits and cannot be {purpose}: use the checkpoint it was made from"
        )


def count_weight_bytes(model: nn.Module) -> int:
    """Returns the bytes of all parameters in memory, each counted once; buffers are not counted."""
    return sum(
        parameter.data.packed_bytes if isinstance(parameter.data, QuantizedTensor) else parameter.nbytes
        for parameter in model.parameters()
    )
