"""What a stage that starts or is resumed in an existing run must find there: the same settings, parent and tokenizer.

Start with `reconcile`. `reconcile_settings` compares the recipe with that of the checkpoint that is loaded, says what
changed in one table, and returns the recipe that really runs. `require_same_parent` finds a stage that was made from
other weights than its parent has now. `require_tokenizer` puts a lost tokenizer back and rejects another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fledgling.config import PHASES, STAGES, LoopConfig, ModelConfig, Recipe, StageConfig, TokenizerConfig, UserError
from fledgling.config.changes import ChangedSetting, compare_recipes, format_changes, keep_derived, keep_ignored
from fledgling.config.load import parse_recipe
from fledgling.plan.derive import needs_examples
from fledgling.plan.horizon import compute_horizon
from fledgling.plan.stage_length import fixed_rows
from fledgling.record import checkpoint
from fledgling.record.durable import write_file
from fledgling.record.parent import describe_parent, is_left_of
from fledgling.record.seal import FORECAST
from fledgling.record.state_shape import require_sound_state
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.derived_values import add_derived_values, open_unbegun, read_derived_values
from fledgling.train.stage_horizon import keep_made_steps

Log = Callable[[str], None]


def reconcile(
    recipe: Recipe,
    stage: str,
    run_dir: Path,
    saved: Path | None,
    parent: Path | None,
    log: Log,
    steps_are_chosen: bool = False,
) -> Recipe:
    """Returns the recipe that a stage runs with, once it is certain that it may.

    Args:
        saved: the checkpoint of this stage that it resumes from; None: it starts.
        parent: the checkpoint that the stage starts, or once started, from; None: from the seed.
        log: receives what changed and what was repaired.
        steps_are_chosen: whether the run, and no user, has set the stage's steps: no changed setting.

    Raises:
        UserError: a rejected setting, another parent or another tokenizer.
    """
    source = saved or parent
    require_same_parent(stage, run_dir / stage, saved, parent)
    recipe = reconcile_settings(recipe, stage, run_dir, source, log, steps_are_chosen)
    require_tokenizer(run_dir, source, log)
    if source is None:
        require_tokenizer_settings(recipe.tokenizer, run_dir)
    return recipe


def list_done_stages(run_dir: Path) -> list[str]:
    """Returns the stages of a run that have finished."""
    return [stage for stage in STAGES if (run_dir / stage / "done.json").is_file()]


def reconcile_settings(
    recipe: Recipe, stage: str, run_dir: Path, source: Path | None, log: Log, steps_are_chosen: bool = False
) -> Recipe:
    """Returns the recipe that `stage` runs with when it starts from the checkpoint `source`.

    Fields that are ignored, and open ones that a rule had filled, keep the checkpoint's values; those that a rule has
    filled for a stage that begins only now are open again. What takes effect or is ignored is logged as a table. Raises
    UserError, with the table, if a field is rejected.

    Args:
        recipe: of this start.
        stage: that starts.
        run_dir: of the run.
        source: the checkpoint; None: the stage starts from the seed.
        log: receives the table of changed fields.
        steps_are_chosen: whether a budget decides the steps.
    """
    saved, values = _read_saved_recipe(source, log), read_derived_values(run_dir)
    state = checkpoint.read_checkpoint_state(source) if source else {}
    is_resumed = state.get("stage") == stage
    begins = ([] if is_resumed else [stage]) + (["optimizer"] if source is None else [])
    recipe = open_unbegun(recipe, run_dir, begins)
    if source is None or saved is None:
        return recipe
    saved, recipe = keep_made_steps(saved, state), keep_made_steps(keep_derived(saved, recipe), state)
    done = [name for name in list_done_stages(run_dir) if name != stage]  # one that is restarted is no longer done
    changed = _compare(add_derived_values(saved, recipe, values), recipe, stage, done, is_resumed, state)
    _require_allowed(changed, stage, source, run_dir)
    chosen: set[str] = set()
    if steps_are_chosen or (run_dir / FORECAST).is_file():  # a budget has set the steps of each stage when it began
        stated = frozenset() if steps_are_chosen else recipe.stated
        chosen = {f"{name}.{field}" for name in STAGES for field in ("steps", "warmup_steps", *PHASES)} - stated
    if shown := [change for change in changed if change.name not in chosen]:
        log(f"{stage}: settings differ from those of {source}\n" + "\n".join(format_changes(shown)))
    for change in (change for change in changed if steps_are_chosen and change.name == f"{stage}.steps"):
        log(f"{stage}: {change.wanted} steps instead of the planned {change.saved}, for the time that is left")
    return keep_ignored(saved, recipe, changed)


def require_unchanged(recipe: Recipe, stage: str, run_dir: Path, newest: Path | None, log: Log) -> None:
    """Logs which changed settings are ignored because `stage` is done; raises UserError for a rejected one.

    Args:
        recipe: of this start.
        stage: that is done.
        run_dir: of the run.
        newest: the stage's newest valid checkpoint.
        log: receives the table of changed fields.
    """
    saved = _read_saved_recipe(newest, log)
    if newest is None or saved is None:
        return
    state = checkpoint.read_checkpoint_state(newest)
    saved, recipe = keep_made_steps(saved, state), keep_made_steps(keep_derived(saved, recipe), state)
    since = add_derived_values(saved, recipe, read_derived_values(run_dir))
    changed = _compare(since, recipe, stage, list_done_stages(run_dir), True, state)
    if saved.run.init_from is not None:  # the weights replaced [model] and the vocabulary, and still do
        changed = [c for c in changed if not c.name.startswith("model.") and c.name != "tokenizer.vocab_size"]
    if saved.adapter.init_from is not None:  # the given adapter replaced the shape in [adapter]
        changed = [c for c in changed if not c.name.startswith("adapter.")]
    _require_allowed(changed, stage, newest, run_dir)
    ignored = [
        replace(c, outcome="ignored", reason=f"{stage} is done")
        for c in changed
        if c.name.partition(".")[0] not in {*STAGES, "run", "name", "description", "stages"} - {stage}
    ]
    if ignored:
        how = f"`fledgling train {stage} {run_dir} --resume never` restarts it, --set run.out=DIR in another run"
        log(f"{stage} is done, and keeps its settings ({how})\n" + "\n".join(format_changes(ignored)))


def _compare(
    saved: Recipe, recipe: Recipe, stage: str, done: list[str], is_resumed: bool, state: dict[str, Any]
) -> list[ChangedSetting]:
    """Compares recipes once open fields of the stage have the values that the stage gave them."""
    config = ModelConfig.from_dict(state["model"])
    table, wanted = saved.stage_config(stage), recipe.stage_config(stage)
    known: dict[str, Any] = {}
    if table.micro_batch_size is None and wanted.micro_batch_size is not None and is_resumed:
        known["micro_batch_size"] = state.get("micro_batch")
    if isinstance(table, StageConfig) and isinstance(wanted, StageConfig):
        rows = read_rows_per_step(state, table) if is_resumed else fixed_rows(stage, table, config)
        derived = rows and rows * config.context
        if (table.batch_tokens or derived) == (wanted.batch_tokens or derived):
            known["batch_tokens"] = wanted.batch_tokens
            if table.batch_tokens != wanted.batch_tokens:  # the same batch, stated on one side and derived on the other
                known["examples_per_step"] = wanted.examples_per_step
    filled = _replace_stage(saved, stage, replace(table, **known))
    return compare_recipes(filled, recipe, stage, done, is_resumed, int(state.get("step", 0)), config.vocab_size)


def read_rows_per_step(state: dict[str, Any], table: LoopConfig) -> int | None:
    """Returns the rows of a step of the stage that a checkpoint is of; None for a stage that does not count them.

    table: of the stage. An older checkpoint does not record its rows: the batch was the table's, or followed from the
    depth.
    """
    if not isinstance(table, StageConfig):
        return None
    config = ModelConfig.from_dict(state["model"])
    return state.get("rows_per_step") or compute_horizon(config, table.batch_tokens).batch_tokens // config.context


def read_pretrain_rows(run_dir: Path, recipe: Recipe, config: ModelConfig) -> int | None:
    """Returns the rows of a step of a run's pretraining if its examples have decided them, else None.

    By the depth where no checkpoint says them. config: of the model.
    """
    if not needs_examples(recipe):
        return None
    newest = checkpoint.find_latest_checkpoint(run_dir / "pretrain" / "checkpoints")
    rows = read_rows_per_step(checkpoint.read_checkpoint_state(newest), recipe.pretrain) if newest else None
    return rows or compute_horizon(config).batch_tokens // config.context


def _replace_stage(recipe: Recipe, stage: str, table: Any) -> Recipe:
    """Returns the recipe with another table of a stage."""
    tables: dict[str, Any] = {stage: table}
    return replace(recipe, **tables)


def _require_allowed(changed: list[ChangedSetting], stage: str, source: Path, run_dir: Path) -> None:
    if rejected := [c for c in changed if c.outcome == "rejected"]:
        first, others = rejected[0], ", ".join(c.name for c in rejected[1:])
        raise UserError(
            f"{stage} cannot be resumed from {source} with {first.name}={first.wanted}: it is {first.saved} there, and "
            f"{first.reason}{f' (also {others})' if others else ''}; leave it, or start another run with "
            f"--set run.out=DIR ({run_dir} is unchanged)\n" + "\n".join(format_changes(changed))
        )


def _read_saved_recipe(source: Path | None, log: Log) -> Recipe | None:
    """Returns the recipe that a checkpoint of a run was saved with; None for an imported checkpoint."""
    text = checkpoint.read_checkpoint_state(source).get("recipe") if source else None
    if not isinstance(text, str):
        return None
    try:
        return parse_recipe(text)
    except UserError as error:
        log(f"the recipe in {source} cannot be compared with this one: {error}")
        return None


def read_prepared_data(run_dir: Path, stage: str) -> dict[str, Any] | None:
    """Returns which prepared data a stage reads, from its newest valid checkpoint: its texts may have changed since.

    Raises UserError for a checkpoint whose state is of another shape than this program writes.
    """
    newest = checkpoint.find_latest_checkpoint(
        run_dir / stage / "checkpoints", check_hashes=False, warn=lambda text: None
    )
    return require_sound_state(newest).get("data") if newest else None


# ---- parent and tokenizer ------------------------------------------------------------------------


def require_same_parent(stage: str, stage_dir: Path, saved: Path | None, parent: Path | None) -> None:
    """Raises UserError if a stage's checkpoint was made from other weights than the stage before it has now.

    That happens when that stage was restarted, or its directory was replaced.
    """
    began_from = checkpoint.read_checkpoint_state(saved).get("parent") if saved else None
    now = describe_parent(parent)
    if not isinstance(began_from, dict) or parent is None or is_left_of(parent, began_from):
        return
    if now and began_from.get("weights") != now["weights"]:
        raise UserError(
            f"{stage_dir} was made from other weights than {parent} has now (that stage was trained again since): "
            f"restart {stage} with `fledgling train {stage} {stage_dir.parent} --resume never`"
        )


def require_tokenizer(run_dir: Path, source: Path | None, log: Log) -> None:
    """Puts the tokenizer of the checkpoint `source` back if the run has lost its own.

    Raises UserError if the run has another tokenizer than its weights.
    """
    file = run_dir / "tokenizer" / "tokenizer.json"
    if source is None or not (source / "tokenizer.json").is_file():
        return
    if not file.exists():
        write_file(file, (source / "tokenizer.json").read_bytes())
        log(f"{file} was missing: it is that of {source}")
        return
    if Tokenizer.load(file).fingerprint() != Tokenizer.load(source / "tokenizer.json").fingerprint():
        raise UserError(
            f"{file} is another tokenizer than that of {source}, which its weights need: delete {file.parent}, and the "
            "checkpoint's own is used"
        )


def require_tokenizer_settings(table: TokenizerConfig, run_dir: Path) -> None:
    """Raises UserError if a run without weights has a tokenizer that was made with other settings than the recipe's.

    That is one without the digests of what it was made from, which is therefore not trained again automatically; and
    one whose tokenizer.json is not the file that its training.json describes.
    """
    file = run_dir / "tokenizer" / "tokenizer.json"
    try:
        made_with = json.loads(file.with_name("training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        made_with = {}
    if not file.is_file() or not isinstance(made_with, dict):
        return
    remedy = f"delete {file.parent} to train it again, or choose another directory with --set run.out=DIR"
    tokenizer = Tokenizer.load(file)
    if made_with.get("fingerprint", tokenizer.fingerprint()) != tokenizer.fingerprint():
        raise UserError(f"{file} is not the tokenizer that training.json next to it describes: {remedy}")
    if "inputs" in made_with and not file.parent.is_symlink():
        return  # DataPreparer trains it again where text or settings changed
    if tokenizer.vocab_size != table.vocab_size:
        made_with = {"vocab_size": tokenizer.vocab_size, **made_with}
    for name in ("vocab_size", "max_digits", "letter_tokens"):
        wanted = getattr(table, name)
        if made_with.get(name, wanted) != wanted:
            raise UserError(
                f"{file.parent} was made with tokenizer.{name}={made_with[name]}, the recipe says {wanted}: {remedy}"
            )
