"""A model out of a checkpoint, ready to answer.

One idea: a checkpoint's state says which model its weights are of, and its tokenizer lies beside them, so a path is
all that anyone needs to say. What a checkpoint is, and how it is checked, is `fledgling.record.checkpoint`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fledgling.config import ModelConfig, UserError
from fledgling.kernels.quantized_model import load_quantized_model
from fledgling.model.flash_norm import drop_norm_weights, fold_norm_weights
from fledgling.model.transformer import Transformer
from fledgling.record.checkpoint import load_checkpoint, resolve_checkpoint
from fledgling.text.tokenizer import Tokenizer


def load_model(
    path: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, fold_norms: bool = False
) -> tuple[Transformer, Tokenizer, dict[str, Any]]:
    """The model (in eval mode on `device`), the tokenizer and the state of what `resolve` finds at `path`.

    dtype: None leaves the model's own; fold_norms: the norms' weights go into the matrices behind them. A quantized
    checkpoint's matrices stay packed. Raises UserError when the weights do not fit the model described in the state.
    """
    checkpoint = load_checkpoint(resolve_checkpoint(path), groups=("model",))
    tokenizer = checkpoint.path / "tokenizer.json"
    if not tokenizer.is_file():
        raise UserError(f"checkpoint {checkpoint.path} has no tokenizer.json, so it cannot be talked to")
    weights = checkpoint.tensors["model"]
    try:
        config = ModelConfig.from_dict(checkpoint.state["model"])
        if config.depth > len(weights):
            raise ValueError(f"{config.depth} layers, {len(weights)} tensors")
        if "quantized" in checkpoint.state:
            model = load_quantized_model(config, weights, checkpoint.state["quantized"], device, dtype)
            return model, Tokenizer.load(tokenizer), checkpoint.state
        model = Transformer(config)
        model.load_state_dict(weights)
        if fold_norms:
            config, weights = drop_norm_weights(config, fold_norm_weights(config, model.state_dict()))
            model = Transformer(config)
            model.load_state_dict(weights)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as problem:
        reason = " ".join(str(problem).split())[:200]
        raise UserError(f"checkpoint {checkpoint.path}: model and weights do not fit: {reason}") from None
    return model.to(device=device, dtype=dtype).eval(), Tokenizer.load(tokenizer), checkpoint.state
