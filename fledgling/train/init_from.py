"""Where a run begins when it does not begin from the seed: somebody's weights, with the tokenizer they were trained on.

The one idea: [run] start_from is the checkpoint before the first stage. A Hugging Face directory is read into
RUN/start once; from then on the run needs nothing from outside. The recipe's [model] table gives way to what the
weights are, so that the plan, the rows and the report speak of the model that is really trained.
"""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from pathlib import Path

from fledgling.config import ModelTable, Recipe, UserError
from fledgling.export.import_hf import import_hf
from fledgling.model.config import ModelConfig
from fledgling.record import checkpoint
from fledgling.text.tokenizer import Tokenizer

INIT_DIR = "start"  # in the run directory: what was read from a Hugging Face directory


def find_init_checkpoint(recipe: Recipe, run_dir: Path) -> Path | None:
    """The checkpoint that the recipe's first stage starts from, its tokenizer made the run's; None: from the seed.

    Raises UserError where there is none, or where the run has another tokenizer already.
    """
    given = recipe.run.init_from
    if given is None:
        return None
    found = checkpoint.find_latest_checkpoint(run_dir / INIT_DIR)
    if found is None and (Path(given) / "config.json").is_file():
        found, _ = import_hf(Path(given), run_dir / INIT_DIR)
    found = found or checkpoint.resolve_checkpoint(given)
    theirs, ours = found / "tokenizer.json", run_dir / "tokenizer" / "tokenizer.json"
    if not theirs.is_file():
        raise UserError(f"run.init_from: {found} has no tokenizer.json, and weights are of no use with another")
    if not ours.exists():
        ours.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(theirs, ours)
    elif Tokenizer.load(ours).fingerprint() != Tokenizer.load(theirs).fingerprint():
        raise UserError(f"run.init_from: {ours} is another tokenizer than that of {found}; choose another run.out")
    return found


def recipe_from_checkpoint(recipe: Recipe, checkpoint_dir: Path | None) -> Recipe:
    """The recipe with its [model] table and vocabulary as the weights have them."""
    if checkpoint_dir is None:
        return recipe
    config = ModelConfig.from_dict(checkpoint.load_checkpoint(checkpoint_dir, groups=("model",)).state["model"])
    known = {f.name for f in fields(ModelConfig)}
    table = ModelTable(**{f.name: getattr(config, f.name) for f in fields(ModelTable) if f.name in known})
    table = replace(table, window_size=config.window_size or None)
    return replace(recipe, model=table, tokenizer=replace(recipe.tokenizer, vocab_size=config.vocab_size))
