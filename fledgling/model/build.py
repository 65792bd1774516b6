"""Builds a model on its device: parameters are allocated there, and blocks are compiled where a compiler exists."""

from __future__ import annotations

import torch

from fledgling.config import ModelConfig
from fledgling.model.cuda_attention import MIN_HEAD_WIDTH
from fledgling.model.fp8 import use_fp8
from fledgling.model.logprob import compile_logprob_kernels
from fledgling.model.transformer import Transformer
from fledgling.runtime.compile_options import compile_options
from fledgling.runtime.device import DeviceSetup, raise_recompile_limit


def build_model(config: ModelConfig, setup: DeviceSetup, device: torch.device) -> Transformer:
    """Returns an uninitialized model on `device`.

    With `setup.compiled`, the blocks are compiled once for all layers, with static shapes.
    """
    with torch.device(device):
        model = Transformer(config, setup.dtype)
    if setup.fp8:
        use_fp8(model.blocks)
    if setup.compiled:
        model.logprob_kernels = compile_logprob_kernels(device)
        compile_blocks(model, device)
    return model


def compile_blocks(model: Transformer, device: torch.device) -> None:
    """Compiles the blocks of a model on `device`, which run so where gradients are enabled (`Transformer.forward`)."""
    raise_recompile_limit()  # beyond it a block runs eagerly, and FlexAttention then makes all T x T scores
    for block in model.blocks:
        block.compile(dynamic=False, **compile_options(device))
    if device.type == "cuda":
        model.use_block_masks = model.config.head_width >= MIN_HEAD_WIDTH
        for norm in (model.embedding_norm, model.norm):  # eagerly five passes over (B, T, C) in fp32
            norm.compile(dynamic=False)
