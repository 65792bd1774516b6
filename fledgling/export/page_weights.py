"""The weights of a page in one file: a model's quantized here, or those of a checkpoint that is quantized already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fledgling.config import ModelConfig, UserError
from fledgling.kernels.format import DEFAULT_GROUP_SIZES, check_quantization
from fledgling.kernels.quantized_model import load_quantized_model, quantize_state_dict
from fledgling.kernels.quantized_tensor import QuantizedTensor
from fledgling.model.transformer import Transformer

DEFAULT_BITS = 4


@dataclass(frozen=True)
class PageWeights:
    """Tensors of `quantize_state_dict`, and their bits."""

    config: ModelConfig
    tensors: Mapping[str, Tensor]
    bits: int

    def load_reference(self) -> Transformer:
        """Returns the model whose answers are the page's: the quantized weights, multiplied in fp32."""
        return load_quantized_model(self.config, self.tensors, {"bits": self.bits}, dtype=torch.float32)


def quantize_for_page(
    model: Transformer, state: Mapping[str, Any], bits: int | None, group_size: int | None, embedding: bool
) -> PageWeights:
    """Returns the weights of a page.

    Args:
        model: of `load_model`.
        state: the checkpoint's.
        bits, group_size: None is the default.
        embedding: whether the embedding is quantized too.

    Raises:
        UserError: the format does not take the model, or a quantized checkpoint is to be quantized again.
    """
    if "quantized" in state:
        if bits is not None or group_size is not None or embedding:
            raise UserError(
                f"the checkpoint is quantized to {state['quantized']['bits']} bits already: leave out --bits, "
                "--group-size and --embedding, or export the checkpoint it was made from"
            )
        return PageWeights(model.config, _unpack(model), state["quantized"]["bits"])
    bits = DEFAULT_BITS if bits is None else bits
    group_size = group_size or DEFAULT_GROUP_SIZES.get(bits, 0)
    check_quantization(bits, group_size)
    tensors = quantize_state_dict(model.config, model.state_dict(), bits, group_size, embedding=embedding)
    return PageWeights(model.config, tensors, bits)


def _unpack(model: Transformer) -> dict[str, Tensor]:
    """Returns the tensors that `load_quantized_model` made a model of."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        packed = parameter.data
        if isinstance(packed, QuantizedTensor):
            tensors |= {f"{name}.values": packed.values, f"{name}.scales": packed.scales}
        else:
            tensors[name] = packed.to(torch.bfloat16)
    return tensors
