"""Builds a model on its device: parameters are allocated there, and blocks are compiled where a compiler exists."""

from __future__ import annotations

import torch

from fledgling.model.config import ModelConfig
from fledgling.model.cuda_attention import MIN_HEAD_WIDTH
from fledgling.model.logprob import compile_logprob_kernels
from fledgling.model.transformer import Transformer
from fledgling.runtime.device import DeviceSetup


def build_model(config: ModelConfig, setup: DeviceSetup, device: torch.device) -> Transformer:
    """Returns an uninitialized model on `device`.

    With `setup.compiled`, the blocks are compiled once for all layers, with static shapes.
    """
    with torch.device(device):
        model = Transformer(config, setup.dtype)
    if setup.compiled:
        compile_logprob_kernels()
        for block in model.blocks:
            block.compile(dynamic=False)
        model.use_block_masks = device.type == "cuda" and config.head_width >= MIN_HEAD_WIDTH
    return model
