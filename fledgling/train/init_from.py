"""Starting a run from given weights instead of the seed: `run.init_from` names the checkpoint before the first stage.

A Hugging Face directory is imported into RUN/init once; after that the run needs nothing from outside. The weights
decide the recipe's [model] table, so that the plan, the rows and the report describe the model that is trained.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from fledgling.config import ModelConfig, Recipe, UserError
from fledgling.export.import_hf import import_hf
from fledgling.record import checkpoint
from fledgling.text.tokenizer import Tokenizer

INIT_DIR = "init"  # in the run directory: the imported checkpoint


def find_init_checkpoint(recipe: Recipe, run_dir: Path) -> Path | None:
    """Returns the checkpoint that the first stage starts from, or None; copies its tokenizer into the run.

    Raises UserError if it is missing, or if the run already has another tokenizer.
    """
    source = recipe.run.init_from
    if source is None:
        return None
    path = checkpoint.find_latest_checkpoint(run_dir / INIT_DIR)
    if path is None and (Path(source) / "config.json").is_file():
        path, _ = import_hf(Path(source), run_dir / INIT_DIR)
    path = path or checkpoint.resolve_checkpoint(source)
    its_tokenizer, run_tokenizer = path / "tokenizer.json", run_dir / "tokenizer" / "tokenizer.json"
    if not its_tokenizer.is_file():
        raise UserError(f"run.init_from: {path} has no tokenizer.json, and weights are of no use with another")
    if not run_tokenizer.exists():
        run_tokenizer.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(its_tokenizer, run_tokenizer)
    elif Tokenizer.load(run_tokenizer).fingerprint() != Tokenizer.load(its_tokenizer).fingerprint():
        raise UserError(
            f"run.init_from: {run_tokenizer} is another tokenizer than that of {path}; choose another run.out"
        )
    return path


def recipe_from_checkpoint(recipe: Recipe, checkpoint_dir: Path | None) -> Recipe:
    """Returns the recipe with the checkpoint's model configuration and vocabulary size; None: the recipe unchanged."""
    if checkpoint_dir is None:
        return recipe
    config = ModelConfig.from_dict(checkpoint.load_checkpoint(checkpoint_dir, groups=("model",)).state["model"])
    model = config.unpin("vocab_size") if config.window_size else config.unpin("vocab_size", "window_size")
    return replace(recipe, model=model, tokenizer=replace(recipe.tokenizer, vocab_size=config.vocab_size))
