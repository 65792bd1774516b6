"""What two settings make, and whether it differs."""

from pathlib import Path
from typing import Any

import torch

from fledgling.config import Recipe, load_recipe
from fledgling.model.transformer import Transformer
from fledgling.record import checkpoint
from fledgling.train import run
from fledgling.train.hooks import NO_EVALS

Case = tuple[Any, dict[str, Any]]  # a value, and what else must be set, before and after, for it to matter


def differ(base: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two outcomes differ in any value or tensor."""
    return base.keys() != other.keys() or any(
        not value.equal(other[name]) if isinstance(value, torch.Tensor) else value != other[name]
        for name, value in base.items()
    )


def fill_zeros(model: Transformer) -> Transformer:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2, generator=draw)
    return model


def recipe_of(folder: Path, *settings: str) -> Recipe:
    return load_recipe(folder / "fast.toml", ["sft.mixture={}", *settings])


def final_weights(recipe: Recipe, stage: str) -> dict[str, torch.Tensor]:
    run.run_stage(recipe, stage, resume="never", quiet=True, hooks=NO_EVALS)
    found = checkpoint.find_latest_checkpoint(Path(recipe.run.out) / stage / "checkpoints")
    assert found is not None
    return checkpoint.load_checkpoint(found).tensors["model"]
