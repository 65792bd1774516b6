"""Low-rank adapters: a frozen matrix W and a trained update of rank r. Start with `attach_adapter`.

    lora    y = x W^T + s (x A^T) B^T                       s = alpha / r        Hu et al. 2021, arXiv 2106.09685
    rslora  the same                                        s = alpha / sqrt(r)  Kalajdzievski 2023, arXiv 2312.03732
    dora    y = m / |W + s B A| (x W^T + s (x A^T) B^T)     s = alpha / r        Liu et al. 2024, arXiv 2402.09353

|.| are the lengths of rows, of which DoRA's gradient takes no notice (its section 4.3). B starts at 0 and m at |W|, so
a fresh adapter changes nothing. The whole update B A is never kept: the gradients of A and B need two thin products for
each matrix, and that of W is not computed. `merge_adapter` makes plain weights of both.

r rank, in and out the widths of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledgling.config import AdapterConfig, ModelConfig

ADAPTER = "adapter"  # the name of the submodule: blocks.0.attention.q_proj.adapter.lora_A


class Adapter(nn.Module):
    """The trained part of one matrix (out, in)."""

    def __init__(self, config: AdapterConfig, shape: tuple[int, int], device: torch.device | None = None) -> None:
        super().__init__()
        self.scale = config.scale
        self.lora_A = nn.Parameter(torch.zeros(config.rank, shape[1], device=device))  # (r, in)
        self.lora_B = nn.Parameter(torch.zeros(shape[0], config.rank, device=device))  # (out, r)
        self.magnitude = nn.Parameter(torch.ones(shape[0], device=device)) if config.has_magnitude else None  # (out,)

    def forward(self, product: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Computes the adapted product.

        Args:
            product: (..., out), x W^T.
            x: (..., in).
            weight: W (out, in).

        Returns:
            (..., out) in the product's dtype.
        """
        thin = F.linear(x, self.lora_A.to(x.dtype))  # (..., r)
        y = product + F.linear(thin, self.lora_B.to(x.dtype)) * self.scale
        if self.magnitude is None:
            return y
        with torch.no_grad():
            lengths = torch.linalg.vector_norm(weight.float() + self.scale * (self.lora_B @ self.lora_A), dim=1)
        return y * (self.magnitude / lengths).to(y.dtype)


class AdaptedLinear(nn.Linear):
    """A linear layer with a frozen weight and an adapter; `linear.apply_linear` multiplies by both."""

    def __init__(self, linear: nn.Linear, config: AdapterConfig) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.adapter = Adapter(config, (linear.out_features, linear.in_features), linear.weight.device)


def attach_adapter(model: nn.Module, adapter: AdapterConfig, config: ModelConfig) -> None:
    """Freezes all parameters of a model and adds an untrained adapter, which changes nothing once it is initialized.

    Raises UserError for a target that the model does not have.
    """
    matrices = adapter.select_matrices(config)
    model.requires_grad_(False)
    for name in matrices:
        parent_name, _, attribute = name.rpartition(".")
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear), name
        setattr(model.get_submodule(parent_name), attribute, AdaptedLinear(linear, adapter))


def list_adapted(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """Yields name and layer of every adapted matrix."""
    yield from ((name, module) for name, module in model.named_modules() if isinstance(module, AdaptedLinear))


def has_adapter(model: nn.Module) -> bool:
    """Returns whether a model has an adapter."""
    return next(list_adapted(model), None) is not None


@torch.no_grad()
def initialize_adapter(model: nn.Module, seed: int) -> None:
    """Initializes all adapters: A uniform within in^-1/2, B zero, m the lengths of the weight's rows.

    The values depend on the seed, the shapes and the weights alone.
    """
    generator = torch.Generator().manual_seed(seed)
    for _, layer in list_adapted(model):
        adapter = layer.adapter
        bound = layer.in_features**-0.5
        adapter.lora_A.copy_((2 * torch.rand(adapter.lora_A.shape, generator=generator) - 1) * bound)
        adapter.lora_B.zero_()
        if adapter.magnitude is not None:
            adapter.magnitude.copy_(torch.linalg.vector_norm(layer.weight.float(), dim=1))


def is_adapter_name(name: str) -> bool:
    """Returns whether a parameter of that name belongs to an adapter."""
    return f".{ADAPTER}." in name


@torch.no_grad()
def load_adapter(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies the values of an adapter into the model's; `tensors` has exactly its names and shapes."""
    parameters = {name: value for name, value in model.named_parameters() if is_adapter_name(name)}
    assert parameters.keys() == tensors.keys(), "the adapter's tensors are not the model's"
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def merge_adapter(
    weights: Mapping[str, Tensor], adapter: AdapterConfig, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Returns plain weights that compute what weights and adapter compute together; exact up to rounding.

    Args:
        weights: a model's tensors by name.
        tensors: the adapter's by name.

    Returns:
        The weights by name, in their dtypes; those without an adapter are the same tensors.
    """
    merged = dict(weights)
    for name in {name.rpartition(f".{ADAPTER}.")[0] for name in tensors}:
        part = f"{name}.{ADAPTER}."
        weight = weights[f"{name}.weight"]
        updated = weight.float() + adapter.scale * (tensors[f"{part}lora_B"].float() @ tensors[f"{part}lora_A"].float())
        if f"{part}magnitude" in tensors:
            lengths = torch.linalg.vector_norm(updated, dim=1)
            updated = updated * (tensors[f"{part}magnitude"].float() / lengths)[:, None]
        merged[f"{name}.weight"] = updated.to(weight.dtype)
    return merged
