"""Several adapters over one set of weights in memory: each a model of its own that shares all frozen parameters."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from fledgling.config import STAGES, UserError
from fledgling.export.adapter_base import require_base
from fledgling.export.peft_format import CONFIG_FILE, read_peft
from fledgling.infer.engine import Engine
from fledgling.model.adapter import attach_adapter, load_adapter
from fledgling.model.transformer import Transformer
from fledgling.record.checkpoint import resolve_checkpoint

STATE = "state.json"  # of a checkpoint, which is an adapter's directory too


def make_engines(engine: Engine, directories: Mapping[str, Path]) -> dict[str, Engine]:
    """Returns an engine for each adapter, by name; all of them share one copy of the weights in the engine's dtype.

    Raises UserError for a directory that is no adapter of the engine's model, or says that it is one of other weights.
    """
    base = engine.source
    if base.embedding.weight.dtype != engine.dtype:
        base = copy.deepcopy(base).to(engine.dtype)
        base.compute_dtype = engine.dtype
    models = {}
    for name, directory in directories.items():
        require_base(directory, engine.source.state_dict())
        models[name] = share_weights(base, directory, engine.dtype)
    return {name: Engine(model, engine.tokenizer, tool=engine.tool) for name, model in models.items()}


def share_weights(model: Transformer, directory: Path, dtype: torch.dtype) -> Transformer:
    """Returns a model with the adapter of a directory in peft's format, which a checkpoint of an adapter is too.

    Args:
        model: whose parameters are shared; they must not be trained.
        dtype: of the adapter's parameters, as of the model's.

    Raises:
        UserError: it is no adapter of this model, or was trained on quantized matrices.
    """
    if _is_trained_on_quantized(directory):
        raise UserError(f"{directory} was trained on quantized matrices, which these are not: serve its run instead")
    adapter, tensors = read_peft(directory, model.config)
    adapted = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    attach_adapter(adapted, adapter, model.config)
    load_adapter(adapted, tensors)
    return adapted.to(dtype).requires_grad_(False).eval()


def _is_trained_on_quantized(directory: Path) -> bool:
    try:
        state = json.loads((directory / STATE).read_text(encoding="utf-8"))
        return state["adapter"]["config"].get("quantization", "none") != "none"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def find_adapter(directory: Path) -> Path:
    """Returns the directory itself, or of a run or a stage its newest checkpoint, which is one in peft's format too."""
    is_of_run = (directory / "recipe.toml").exists() or directory.name in STAGES
    return resolve_checkpoint(directory) if is_of_run and not (directory / CONFIG_FILE).exists() else directory


def parse_adapters(options: tuple[str, ...]) -> Mapping[str, Path]:
    """Returns name -> directory of NAME=DIR options. Raises UserError for another form or a name given twice."""
    named: dict[str, Path] = {}
    for option in options:
        name, sign, directory = option.partition("=")
        if not sign or not name or not directory or name in named:
            raise UserError(f"--adapter {option}: expected NAME=DIR, each name once")
        named[name] = find_adapter(Path(directory))
    return named
