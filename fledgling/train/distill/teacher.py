"""The teacher of [distill]: its configuration before anything is loaded, its model, and what it must fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fledgling.config import ModelConfig, Recipe, UserError
from fledgling.evals.session import hash_model, load_any_model
from fledgling.export.hf_mapping import from_hf_config
from fledgling.export.untrusted import read_json
from fledgling.kernels.quantized_tensor import QuantizedTensor, has_quantized_weights
from fledgling.model.build import compile_blocks
from fledgling.model.transformer import Transformer
from fledgling.record.checkpoint import read_checkpoint_state, resolve_checkpoint
from fledgling.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Teacher:
    """A loaded teacher, frozen, and what identifies it: a digest of weights, configuration and tokenizer."""

    model: Transformer
    tokenizer: Tokenizer
    identity: str


def read_teacher_config(recipe: Recipe, stage: str | None = None) -> ModelConfig | None:
    """Returns the configuration of the teacher, without its weights; None where there is none.

    Args:
        stage: asks for that stage: None is returned too where it does not learn from the teacher.

    Raises:
        UserError: there is no model at `distill.teacher`.
    """
    spec = recipe.distill.teacher
    if spec is None or (stage is not None and not recipe.has_teacher(stage)):
        return None
    path = Path(spec)
    try:
        if (path / "config.json").is_file():
            return from_hf_config(read_json(path / "config.json"))
        return ModelConfig.from_dict(read_checkpoint_state(resolve_checkpoint(path))["model"])
    except UserError as error:
        raise UserError(f"distill.teacher: {error}") from None


def compile_teacher(model: Transformer, compiled: bool, device: torch.device) -> None:
    """Compiles the blocks of a teacher where those of the model are; quantized ones stay as they are."""
    if compiled and not has_quantized_weights(model):
        compile_blocks(model, device)


def load_teacher(spec: str, device: torch.device | str, dtype: torch.dtype) -> Teacher:
    """Returns a teacher whose matrices are held in the dtype of its products; a quantized one stays packed.

    Raises UserError where there is no model, or its weights do not fit.
    """
    try:
        _, model, tokenizer, _ = load_any_model(spec, torch.device("cpu"))
    except UserError as error:
        raise UserError(f"distill.teacher: {error}") from None
    identity = hash_model(model, tokenizer)
    return Teacher(hold_matrices(model, dtype).to(device).eval(), tokenizer, identity)


def hold_matrices(model: Transformer, dtype: torch.dtype) -> Transformer:
    """Freezes a model and converts its matrices to the dtype of its products; returns the model.

    Tables of positions and the weights of norms keep their precision.
    """
    model.compute_dtype = dtype
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding) and not isinstance(module.weight.data, QuantizedTensor):
            module.to(dtype)
    return model.requires_grad_(False)


def require_same_vocabulary(teacher: Teacher, tokenizer: Tokenizer, config: ModelConfig, spec: str) -> None:
    """Raises UserError unless the teacher predicts the tokens of the model. config: of the model."""
    same = teacher.tokenizer.without_layout().fingerprint() == tokenizer.without_layout().fingerprint()
    if not same:
        raise UserError(
            f"distill.teacher: {spec} has another tokenizer ({teacher.tokenizer.vocab_size:,} entries) than this run "
            f'({tokenizer.vocab_size:,}): make both from one tokenizer, or set distill.match="text"'
        )
    if teacher.model.config.vocab_size != config.vocab_size:
        raise UserError(
            f"distill.teacher: {spec} predicts {teacher.model.config.vocab_size:,} tokens, this model "
            f"{config.vocab_size:,}: expected as many"
        )


def require_context(teacher: ModelConfig, context: int, spec: str) -> None:
    """Raises UserError unless the teacher reads whole rows of the model."""
    if teacher.context < context:
        raise UserError(
            f"distill.teacher: {spec} reads {teacher.context:,} tokens, and rows have {context:,}: set model.context "
            "to that, or choose another teacher"
        )
