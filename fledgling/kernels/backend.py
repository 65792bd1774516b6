"""How an engine's model multiplies its weights, chosen once by `select_backend`.

    live          the model itself: its weights have the device and dtype of the products
    native step   few new tokens run through all blocks in one call of native code (bf16 or quantized weights on a CPU)
    packed        weights in oneDNN's layout (bf16 on a CPU, without a native step)
    skipping      ReLU^2's second matrices skip zeros (on request, or where that is measured to be faster)
    plain         a copy of the model, cast to the dtype and moved to the device

Quantized weights (`quantized_tensor.py`) are part of the model that is given, and choose their own product.

B rows, T time, C width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from fledgling.kernels.decoding_step import DecodingStep, supports_decoding_step
from fledgling.kernels.native import MAX_ROWS
from fledgling.kernels.packed_weight import PackedWeight, can_pack_bf16, pack_linear_weights
from fledgling.kernels.zero_skipping import (
    ZeroSkippingWeight,
    list_skippable_layers,
    measure_zero_skipping,
    skip_relu2_zeros,
)
from fledgling.model.cache import CacheRow, KVCache
from fledgling.model.transformer import Transformer

MIN_SPEEDUP = 1.05  # of zero skipping, to be chosen after a measurement: it holds a matrix twice


class Backend:
    """A model as inference runs it. `source` is the model that is given, `model` the same or a copy of it."""

    def __init__(
        self,
        source: Transformer,
        model: Transformer,
        native_step: DecodingStep | None,
        replaced_weights: dict[str, PackedWeight | ZeroSkippingWeight],
    ) -> None:
        self.source, self.model, self.native_step = source, model, native_step
        self.replaced_weights = replaced_weights  # by the parameter's name
        self.skipping_speedup: float | None = None  # of single rows, where it was measured
        self.refresh_count = 0
        # The tables of parameters by name, not the parameters: one that is replaced is found in its table.
        self._live_parameters = [module._parameters for module in source.modules()] if model is source else []

    @property
    def weights_version(self) -> tuple[int, int]:
        """A value that changes when the weights may have changed, so that what was computed before is not reused.

        It changes with every `refresh`, and for live weights with each change that autograd registers.
        """
        weights = [weight for table in self._live_parameters for weight in table.values() if weight is not None]
        return self.refresh_count, sum(weight._version for weight in weights if not weight.is_inference())

    @torch.no_grad()
    def refresh(self) -> None:
        """Copies the source's weights as they are now; of live ones, the vectors that the native step has in fp32."""
        self.refresh_count += 1
        if self.model is not self.source:
            weights = dict(self.source.named_parameters(remove_duplicate=False))
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[name])
            for name, weight in self.replaced_weights.items():
                weight.copy_(weights[name])
        if self.native_step:
            self.native_step.refresh()

    def extend(self, cache: KVCache, rows: Sequence[CacheRow], tokens: Tensor, counts: Sequence[int]) -> Tensor:
        """Computes the hidden states (B, T, C) of each row's next tokens; stores their keys and values in the cache.

        Args:
            tokens: (B, T) int64, padded on the right; the hidden states of padding have no meaning.
            counts: (B,), the tokens of each row. The caller advances the lengths of the rows.
        """
        if self.native_step and self.native_step.accepts(counts, cache):
            return self.native_step(tokens, cache, rows, counts)
        return self.model(tokens, cache_batch=cache.make_batch(rows, counts))

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """hidden_states (..., C) -> logits (..., V) in fp32."""
        is_few = hidden_states[..., 0].numel() <= MAX_ROWS
        return (self.native_step if self.native_step and is_few else self.model).compute_logits(hidden_states)


def select_backend(
    model: Transformer,
    device: torch.device,
    dtype: torch.dtype,
    skip_zeros: bool = False,
    measured_tokens: Sequence[int] = (),
) -> Backend:
    """Chooses how inference multiplies the weights of `model`.

    Args:
        device, dtype: of the products.
        skip_zeros: skip zeros after ReLU^2, unless a native step is possible, which is faster still. Skipping changes
            results by rounding.
        measured_tokens: a text as token ids; where given, zeros are skipped only if that is measured to be faster for
            the single rows of this text.
    """
    skip_zeros = skip_zeros and device.type == "cpu"
    if not skip_zeros or not measured_tokens:
        return _build_backend(model, device, dtype, skip_zeros)
    plain = _build_backend(model, device, dtype, skip_zeros=False)
    if plain.native_step or not list_skippable_layers(model):
        return plain
    skipping = _build_backend(model, device, dtype, skip_zeros=True)
    weights = [weight for weight in skipping.replaced_weights.values() if isinstance(weight, ZeroSkippingWeight)]
    speedup = measure_zero_skipping(skipping.model, weights, measured_tokens)
    chosen = skipping if speedup >= MIN_SPEEDUP else plain
    chosen.skipping_speedup = speedup
    return chosen


def _build_backend(model: Transformer, device: torch.device, dtype: torch.dtype, skip_zeros: bool) -> Backend:
    """Returns the fastest possible backend, with or without zero skipping."""
    weight = model.embedding.weight
    live = device == weight.device and dtype == weight.dtype == model.compute_dtype and not skip_zeros
    runner = model if live else _cast_copy(model, device, dtype)
    frozen = not live or not weight.requires_grad
    if frozen and supports_decoding_step(runner):
        return Backend(model, runner, DecodingStep(runner), {})
    packs = not live and can_pack_bf16(device, dtype)
    replaced: dict[str, PackedWeight | ZeroSkippingWeight] = {}
    if skip_zeros:
        replaced |= skip_relu2_zeros(runner, packs)
    if packs:
        replaced |= pack_linear_weights(runner)
    return Backend(model, runner, None, replaced)


def _cast_copy(model: Transformer, device: torch.device, dtype: torch.dtype) -> Transformer:
    """Returns a copy of a model for inference: parameters cast, buffers (the rotary tables) as they are."""
    cast = {
        id(weight): torch.nn.Parameter(weight.detach().to(device, dtype, copy=True), requires_grad=False)
        for weight in model.parameters()
    }
    copied_model = copy.deepcopy(model, cast).to(device)
    copied_model.compute_dtype = dtype
    return copied_model
