"""The model runner: a model and its weights laid out for inference, run over whole rows or over a KV cache.

`load_model` reads a model from a checkpoint; `ModelRunner` runs it. It knows neither requests nor tokens to stop at.

B rows, T tokens, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fledgling.config import ModelConfig, UserError
from fledgling.export.checkpoint_weights import read_weights
from fledgling.infer.device_decoder import DeviceDecoder, RunBlock, run_block
from fledgling.infer.step_graphs import StepGraphs, compile_or_fall_back, print_notice
from fledgling.kernels.backend import select_backend
from fledgling.kernels.quantized_model import load_quantized_model
from fledgling.kernels.quantized_tensor import has_quantized_weights
from fledgling.model.attention import TreeMask
from fledgling.model.cache import BLOCK_SIZE, CacheRow, KVCache
from fledgling.model.decode_attention import VARLEN_BLOCK_SIZE, choose_decode_kernel
from fledgling.model.flash_norm import drop_norm_weights, fold_norm_weights
from fledgling.model.transformer import Transformer
from fledgling.record.checkpoint import resolve_checkpoint
from fledgling.runtime.core_monitor import CoreMonitor
from fledgling.runtime.device import should_compile
from fledgling.text.tokenizer import Tokenizer

DeviceDecode = Literal["auto", "graphs", "on", "off"]
GATHER_NOTICE = (
    "decoding copies the cache's blocks for attention: reading them in place needs a compiler (Triton and gcc), or "
    "FlashAttention 3 activated by torch.nn.attention.activate_flash_attention_impl"
)


def load_model(
    path: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, fold_norms: bool = False
) -> tuple[Transformer, Tokenizer, dict[str, Any]]:
    """Loads a model from a checkpoint, a stage or a run directory (`resolve` chooses the checkpoint).

    Args:
        path: the directory.
        device: of the weights.
        dtype: of the weights; None keeps the checkpoint's.
        fold_norms: multiply the norms' weights into the matrices that follow them (model/flash_norm.py).

    Returns:
        The model in eval mode (matrices of a quantized checkpoint stay packed), its tokenizer, the checkpoint's state.

    Raises:
        UserError: the checkpoint has no tokenizer, or its weights do not fit the model that its state describes.
    """
    path = resolve_checkpoint(path)
    checkpoint = read_weights(path)
    tokenizer_path = path / "tokenizer.json"
    if not tokenizer_path.is_file():
        raise UserError(f"checkpoint {path} has no tokenizer.json, which inference needs")
    weights = checkpoint.merged
    try:
        config = ModelConfig.from_dict(checkpoint.state["model"])
        if config.depth > len(weights):
            raise ValueError(f"{config.depth} layers, {len(weights)} tensors")
        if "quantized" in checkpoint.state:
            model = load_quantized_model(config, weights, checkpoint.state["quantized"], device, dtype)
            return model, Tokenizer.load(tokenizer_path), checkpoint.state
        model = Transformer(config)
        model.load_state_dict(weights)
        if fold_norms:
            config, weights = drop_norm_weights(config, fold_norm_weights(config, model.state_dict()))
            model = Transformer(config)
            model.load_state_dict(weights)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"checkpoint {path}: model and weights do not fit: {reason}") from None
    return model.to(device=device, dtype=dtype).eval(), Tokenizer.load(tokenizer_path), checkpoint.state


class ModelRunner:
    """Runs a model without gradients.

    Where dtype or device differ from the model's own, the runner keeps a cast copy of the weights, and
    `refresh_weights` updates it from `source`. Otherwise it reads the model's live weights. How the weights are
    multiplied is chosen once (kernels/backend.py).

    Args:
        model: the source of the weights.
        device: default the model's.
        dtype: of the matrix products; default the model's compute dtype.
        skip_zeros, measured_tokens: see `select_backend`.
        device_decode: decode in steps without a host read (device_decoder.py). "auto": on CUDA, captured as CUDA
            graphs, and compiled where a compiler is found; "graphs": the same without compiling; "on": on any device;
            "off": never.
    """

    def __init__(
        self,
        model: Transformer,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        skip_zeros: bool = False,
        measured_tokens: Sequence[int] = (),
        device_decode: DeviceDecode = "auto",
    ) -> None:
        weight = model.embedding.weight
        self.source = model
        self.device = torch.device(device) if device else weight.device
        self.dtype = dtype or model.compute_dtype
        self.backend = select_backend(model, self.device, self.dtype, skip_zeros, measured_tokens)
        self.model = self.backend.model
        is_cuda = self.device.type == "cuda"
        self.decodes_on_device = device_decode == "on" or (is_cuda and device_decode != "off")
        self.decode_kernel = choose_decode_kernel(self.device, self.dtype, model.config.head_width)
        self.captures_graphs = is_cuda
        can_compile = is_cuda and device_decode != "graphs" and not has_quantized_weights(self.model)
        compiles = can_compile and should_compile("auto", self.device)
        self.run_block: RunBlock = compile_or_fall_back(run_block) if compiles and self.decodes_on_device else run_block
        self.core_monitor: CoreMonitor | None = None  # of what runs for long next to other programs
        self._has_reported = False

    @property
    def weights_version(self) -> tuple[int, int]:
        """Changes when the weights may have changed: keys and values of another version must not be continued.

        It changes with every `refresh_weights`, and for live weights with each change that autograd counts.
        """
        return self.backend.weights_version

    def refresh_weights(self) -> None:
        """Copies the current weights of `source`; live weights need no copy."""
        self.backend.refresh()

    def new_cache(self) -> KVCache:
        """Returns an empty KV cache for this model."""
        is_static = self.decodes_on_device
        block_size = VARLEN_BLOCK_SIZE if is_static and self.decode_kernel == "varlen" else BLOCK_SIZE
        with torch.inference_mode():
            return KVCache(self.model.config, self.dtype, self.device, block_size, is_static)

    def make_decoder(self, cache: KVCache, max_rows: int) -> DeviceDecoder | None:
        """Returns what decodes up to `max_rows` rows of the cache without host reads; None where that is not used."""
        if not self.decodes_on_device:
            return None
        copies = self.captures_graphs and self.decode_kernel == "gather" and self.run_block is run_block
        if copies and not self._has_reported:
            print_notice(GATHER_NOTICE)
            self._has_reported = True
        graphs = StepGraphs(self.captures_graphs)
        return DeviceDecoder(self.model, cache, max_rows, self.decode_kernel, graphs, self.run_block)

    def forward(self, tokens: Tensor, tree: TreeMask | None = None) -> Tensor:
        """Returns hidden states (B, T, C) of whole rows, without a cache.

        Args:
            tokens: (B, T), padded on the right; attention is causal, so no token sees the padding.
            tree: rows that branch (`attention.TreeMask`): a prefix of several continuations is computed once.
        """
        with torch.inference_mode():
            return self.model(tokens.to(self.device), tree=tree)

    def extend_cache(self, cache: KVCache, rows: Sequence[CacheRow], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Appends each row's next tokens to the cache and returns the hidden states after them.

        Args:
            cache: the cache of the rows.
            rows: B rows; their lengths grow by the number of their tokens.
            tokens: of each row, at most T.

        Returns:
            (B, T, C); positions after a row's last token are undefined.
        """
        if self.core_monitor is not None:
            self.core_monitor.adapt()
        counts = [len(row_tokens) for row_tokens in tokens]
        longest = max(counts)
        padded = [[*row_tokens, *[0] * (longest - len(row_tokens))] for row_tokens in tokens]
        with torch.inference_mode():
            ids = torch.tensor(padded, device=self.device)
            hidden = self.backend.extend(cache, rows, ids, counts)
        for row, count in zip(rows, counts, strict=True):
            row.length += count
        return hidden

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Returns logits (..., V) in fp32 of hidden states (..., C)."""
        return self.backend.compute_logits(hidden)
