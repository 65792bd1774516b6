"""Finds what a recipe names outside of itself and this machine lacks, before the first step of any stage.

Here are the directory of the run, packages, sources of the tokenizer, given weights and adapters, and what the teacher
of a stage has to fit; `check_recipe.py` checks what follows from a stage's data and step.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from fledgling.config import ModelConfig, Recipe, UserError
from fledgling.corpora.prepare import read_source
from fledgling.export.peft_format import read_peft
from fledgling.model.fp8 import require_fp8_sizes
from fledgling.optim.gradients import is_deterministic
from fledgling.record.jsonl import make_write_error
from fledgling.record.loggers import require_loggers
from fledgling.runtime.device import DeviceSetup
from fledgling.runtime.world import World
from fledgling.train.data_preparer import DataPreparer
from fledgling.train.distill.teacher import read_teacher_config, require_context
from fledgling.train.stage_weights import INIT_ADAPTER_DIR


def require_writable(run_dir: Path) -> None:
    """Raises UserError unless the directory of a run can be made and written; nothing that stays is written."""
    first = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists() or folder.is_symlink())
    if not first.is_dir():
        raise UserError(
            f"run.out={run_dir}: {first} is {'a file' if first.exists() else 'a link that leads nowhere'}; expected a "
            "directory: choose another with --set run.out=DIR"
        )
    try:
        with TemporaryDirectory(dir=first, prefix=".fledgling-"):
            pass
    except OSError as error:
        raise make_write_error(run_dir, error) from None


def require_tokenizer_sources(recipe: Recipe, preparer: DataPreparer) -> None:
    """Raises UserError for text of a tokenizer that is still to be trained, if it is missing or has no document."""
    if preparer.documents.tokenizer_file.exists() or recipe.run.init_from is not None:
        return
    sources = recipe.tokenizer.sources
    try:
        for source in sources:
            preparer.documents.require_sources([source])
            if Path(source).exists():
                require_document(source, recipe.run.data_dir)
    except UserError as error:
        raise UserError(f"tokenizer.sources: {error}") from None


def require_document(source: str, data_dir: str | None) -> None:
    """Raises UserError for a source of the user's own without a document, such as a file of conversations."""
    if next(iter(read_source(source, data_dir)), None) is None:
        raise UserError(f"{source}: no document with text")


def require_run_settings(recipe: Recipe, preparer: DataPreparer, world: World) -> list[UserError]:
    """Returns what is wrong with a run as a whole, whatever its stages are."""
    found = []
    for check in (
        lambda: require_writable(Path(recipe.run.out)),
        lambda: require_loggers(recipe.run.loggers),
        lambda: require_tokenizer_sources(recipe, preparer),
        lambda: is_deterministic(recipe.optimizer, world),
    ):
        try:
            check()
        except UserError as error:
            found.append(error)
    return found


def require_adapter(recipe: Recipe, name: str, config: ModelConfig, has_weights: bool) -> None:
    """Raises UserError where the adapter that a stage trains has no weights to adapt, or is not one of this model.

    Args:
        name: of the stage.
        config: of its model.
        has_weights: whether the stage starts from weights: of `run.init_from`, or of a stage before it.
    """
    table = recipe.adapter
    if not table.trains_in(name):
        return
    if not has_weights:
        raise UserError(f"{name} trains an adapter, and has no weights to adapt: set run.init_from, or train a stage")
    copied = Path(recipe.run.out) / INIT_ADAPTER_DIR
    if table.init_from is None or copied.is_dir():
        table.select_matrices(config)
        return
    try:
        read_peft(Path(table.init_from), config)
    except UserError as error:
        raise UserError(f"adapter.init_from: {error}") from None


def require_fitting_teacher(recipe: Recipe, name: str, config: ModelConfig) -> None:
    """Raises UserError for a teacher that reads shorter rows than the model, or predicts other tokens."""
    teacher = read_teacher_config(recipe, name)
    if teacher is None:
        return
    spec = str(recipe.distill.teacher)
    require_context(teacher, config.context, spec)
    if (name == "rl" or recipe.distill.match == "tokens") and teacher.vocab_size != config.vocab_size:
        raise UserError(
            f"distill.teacher: {spec} predicts {teacher.vocab_size:,} tokens, this model {config.vocab_size:,}: "
            'expected as many; make both from one tokenizer, or set distill.match="text"'
        )


def require_fp8_products(setup: DeviceSetup, config: ModelConfig) -> None:
    """Raises UserError for products of the blocks that have no kernel in fp8, where `run.fp8` asks for it."""
    if setup.fp8:
        for shape in config.block_matrices().values():
            require_fp8_sizes(*reversed(shape))
