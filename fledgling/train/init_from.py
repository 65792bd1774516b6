"""Starting a run from given weights instead of the seed: `run.init_from` names the checkpoint before the first stage.

A checkpoint or a Hugging Face directory is copied into RUN/init once; after that the run needs nothing from outside,
and a source that is trained further, moved or replaced changes nothing. The weights decide the recipe's [model] table,
so that the plan, the rows and the report describe the model that is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from fledgling.config import STAGES, ModelConfig, Recipe, RunConfig, UserError
from fledgling.export.checkpoint_weights import read_weights
from fledgling.export.import_hf import import_hf, read_model
from fledgling.export.read_hf import read_hf_config
from fledgling.kernels.quantized_model import require_unquantized
from fledgling.record import checkpoint
from fledgling.record.durable import write_file
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.copied_source import read_source_name, read_source_settings, write_source

INIT_DIR = "init"  # in the run directory: the imported checkpoint


def find_init_checkpoint(run: RunConfig, run_dir: Path) -> Path | None:
    """Returns the checkpoint that the first stage starts from, or None; copies it and its tokenizer into the run.

    Raises UserError if it is missing, if the run has other initial weights or another tokenizer already.
    """
    source, init_dir = run.init_from, run_dir / INIT_DIR
    path = checkpoint.find_latest_checkpoint(init_dir)
    if path is None and source is None:
        return None
    if path is None:
        assert source is not None
        path = import_checkpoint(Path(source), init_dir, run)
        write_source(init_dir, source, list_import_settings(run))
    elif (imported := read_source_name(init_dir)) not in (None, source) and not _has_begun(run_dir):
        raise UserError(
            f"{init_dir} holds the weights of {imported}, and run.init_from is {source or 'not set'}: delete "
            f"{init_dir}, or choose another directory with --set run.out=DIR"
        )
    elif not _has_begun(run_dir):
        now = list_import_settings(run)
        for name, before in read_source_settings(init_dir).items():
            if before != now.get(name):
                raise UserError(
                    f"{init_dir} was copied with run.{name} {before}, and it is {now.get(name)}: delete {init_dir}, or "
                    "choose another directory with --set run.out=DIR"
                )
    its_tokenizer, run_tokenizer = path / "tokenizer.json", run_dir / "tokenizer" / "tokenizer.json"
    if not run_tokenizer.exists():
        write_file(run_tokenizer, its_tokenizer.read_bytes())
    elif Tokenizer.load(run_tokenizer).fingerprint() != Tokenizer.load(its_tokenizer).fingerprint():
        raise UserError(
            f"run.init_from: {run_tokenizer} is another tokenizer than that of {path}; choose another run.out"
        )
    return path


def list_import_settings(run: RunConfig) -> dict[str, object]:
    """Returns the settings that decide how given weights are copied."""
    return {"init_context": run.init_context, "init_rope": run.init_rope}


def import_checkpoint(source: Path, init_dir: Path, run: RunConfig) -> Path:
    """Copies the weights and the tokenizer of a checkpoint, or of a Hugging Face directory; returns the copy.

    Its context is `run.init_context`, if that is set.
    """

    if is_foreign(source):
        return import_hf(source, init_dir, partial(adapt_context, run=run))[0]
    path = find_source_checkpoint(source)
    loaded = read_weights(path)
    config = adapt_context(ModelConfig.from_dict(loaded.state["model"]), run)
    state = {"name": path.resolve().name, "step": 0, "model": config.to_dict()}
    state["positions"] = loaded.state.get("positions", {})  # its sources continue where it has stopped reading
    files = {"tokenizer.json": path / "tokenizer.json"}
    return checkpoint.save_checkpoint(init_dir, 0, {"model": loaded.merged}, state, files)


def is_foreign(source: Path) -> bool:
    """Returns whether a source of weights is a Hugging Face directory, or a file, and no checkpoint of ours."""
    return (source / "config.json").is_file() or source.is_file()


def find_source_checkpoint(source: Path) -> Path:
    """Returns the checkpoint that `source` names. Raises UserError if no run can start from it."""
    path = checkpoint.resolve_checkpoint(source)
    if not (path / "tokenizer.json").is_file():
        raise UserError(f"run.init_from: {path} has no tokenizer.json, and weights are of no use with another")
    require_unquantized(checkpoint.read_checkpoint_state(path), path, "trained on")
    return path


def adapt_context(config: ModelConfig, run: RunConfig) -> ModelConfig:
    """Returns the configuration of given weights with `run.init_context`, if that is set."""
    return config.with_context(run.init_context or config.context, run.init_rope)


def read_init_config(run: RunConfig, run_dir: Path) -> ModelConfig | None:
    """Returns the configuration of the weights that a run starts from, which are not copied yet; None without any.

    Raises UserError, with the name of the setting, if there are none or a run cannot start from them.
    """
    copied = checkpoint.find_latest_checkpoint(run_dir / INIT_DIR, False, lambda line: None)
    if copied is not None:
        return ModelConfig.from_dict(checkpoint.read_checkpoint_state(copied)["model"])
    if run.init_from is None:
        return None
    source = Path(run.init_from)
    try:
        if source.is_file():
            config = read_model(source).config
        elif is_foreign(source):
            config = read_hf_config(source)
        else:
            state = checkpoint.read_checkpoint_state(find_source_checkpoint(source))
            config = ModelConfig.from_dict(state["model"])
        return adapt_context(config, run)
    except UserError as error:
        known = str(error)
        raise UserError(known if known.startswith("run.init") else f"run.init_from: {known}") from None


def find_model_config(recipe: Recipe, run_dir: Path) -> ModelConfig:
    """Returns the configuration of the model that the stages train.

    A stage that is saved has decided it, then `run.init_from`, then the recipe. Raises UserError for given weights that
    are missing, or that no run can start from.
    """
    for stage in reversed(recipe.stages):
        saved = checkpoint.find_latest_checkpoint(run_dir / stage / "checkpoints", False, lambda line: None)
        if saved is not None:
            return ModelConfig.from_dict(checkpoint.read_checkpoint_state(saved)["model"])
    return read_init_config(recipe.run, run_dir) or recipe.resolve_model()


def recipe_from_checkpoint(
    recipe: Recipe, checkpoint_dir: Path | None, log: Callable[[str], None] = lambda text: None
) -> Recipe:
    """Returns the recipe with the checkpoint's model configuration and vocabulary size; None: the recipe unchanged.

    log: receives a line that names the fields of [model] whose values in the recipe are ignored.
    """
    if checkpoint_dir is None:
        return recipe
    config = ModelConfig.from_dict(checkpoint.read_checkpoint_state(checkpoint_dir)["model"])
    wanted = vars(recipe.model.unpin("vocab_size"))
    ignored = [name for name, value in vars(config).items() if wanted[name] is not None and wanted[name] != value]
    if ignored:
        log(f"run.init_from decides [model]: {', '.join(ignored)} of the recipe ignored")
    return _with_model(recipe, config)


def take_given_model(recipe: Recipe) -> Recipe:
    """Returns the recipe with the model of `run.init_from`, which is not copied yet; the recipe itself without it.

    Raises UserError as `read_init_config`.
    """
    config = read_init_config(recipe.run, Path(recipe.run.out))
    return recipe if config is None else _with_model(recipe, config)


def _with_model(recipe: Recipe, config: ModelConfig) -> Recipe:
    model = config.unpin("vocab_size") if config.window_size else config.unpin("vocab_size", "window_size")
    return replace(recipe, model=model, tokenizer=replace(recipe.tokenizer, vocab_size=config.vocab_size))


def _has_begun(run_dir: Path) -> bool:
    """Returns whether a stage has saved a checkpoint; then the settings are compared with it."""
    return any(next((run_dir / stage / "checkpoints").glob("step-*"), None) is not None for stage in STAGES)
