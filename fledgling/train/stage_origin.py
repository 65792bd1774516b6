"""What a stage starts from: the checkpoint that it resumes from, that of the stage before it, and its recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fledgling.config import Recipe
from fledgling.config.unused_settings import describe_unused
from fledgling.plan.derive import derive_recipe, list_derived
from fledgling.record import checkpoint
from fledgling.record.parent import describe_incomplete, is_left_of, is_of_unfinished_stage
from fledgling.runtime.world import World
from fledgling.train.copied_source import describe_changed_source
from fledgling.train.init_from import INIT_DIR, find_init_checkpoint, recipe_from_checkpoint
from fledgling.train.kept_bases import describe_dependents
from fledgling.train.resume_check import reconcile
from fledgling.train.stage_settings import describe_unused_here
from fledgling.train.stage_weights import INIT_ADAPTER_DIR, recipe_with_adapter


@dataclass(frozen=True)
class StageOrigin:
    """What stage `name` starts from.

    Attributes:
        given: the recipe before rules filled its open fields.
        recipe: the recipe after that.
        saved: the checkpoint of the stage that it resumes from; None: it starts.
        parent: the checkpoint whose weights the stage starts, or once started, from; None: it starts from the seed.
        notices: lines for the user about what was found, changed or derived.
    """

    name: str
    given: Recipe
    recipe: Recipe
    saved: Path | None = None
    parent: Path | None = None
    notices: tuple[str, ...] = ()

    @property
    def run_dir(self) -> Path:
        """The directory of the run."""
        return Path(self.recipe.run.out)


def find_stage_origin(
    recipe: Recipe, name: str, resume: str, world: World, parent: Path | None, steps_are_chosen: bool
) -> StageOrigin:
    """Returns what a stage starts from, once it is certain that it may. Every rank calls it.

    Args:
        resume: "auto" resumes from the newest checkpoint, "never" starts from the parent.
        parent: the last checkpoint of the stage before it; None: there is none.
        steps_are_chosen: whether the run, and no user, sets the stage's steps.

    Raises:
        UserError: a setting was changed that the checkpoint has decided, or parent or tokenizer are others.
    """
    run_dir = Path(recipe.run.out)
    with world.main_process_first():
        init = find_init_checkpoint(recipe.run, run_dir)
    saved, notices = find_saved_checkpoint(run_dir / name, resume, world)
    parent = drop_older_parent(saved, parent)
    recipe, parent = recipe_from_checkpoint(recipe, init, notices.append), parent or init
    with world.main_process_first():
        recipe = recipe_with_adapter(recipe, run_dir, parent, name)
        given = reconcile(recipe, name, run_dir, saved, parent, notices.append, steps_are_chosen)
        derived = derive_recipe(given)
        notices += describe_incomplete_parent(name, parent) if saved is None else []
        notices += describe_unused(derived) if saved is None and parent == init else []  # of a recipe that is new
        notices += describe_unused_here(derived, name, world.device.type, world.size) if saved is None else []
        notices += describe_dependents(run_dir, name) + describe_derived(name, given, derived)
        if init is not None and parent == init:
            notices += describe_changed_source(run_dir / INIT_DIR, "run.init_from")
        if derived.adapter.init_from and derived.adapter.trains_in(name):
            notices += describe_changed_source(run_dir / INIT_ADAPTER_DIR, "adapter.init_from")
    return StageOrigin(name, given, derived, saved, parent, tuple(notices))


def find_saved_checkpoint(stage_dir: Path, resume: str, world: World) -> tuple[Path | None, list[str]]:
    """Returns the checkpoint that the stage resumes from, the same on all ranks, and notices about skipped ones."""
    notices: list[str] = []
    saved = None
    if resume == "auto":
        saved = checkpoint.find_latest_checkpoint(stage_dir / "checkpoints", warn=notices.append)
    return world.all_gather_object(saved)[0], notices  # rank 0's: a shared file system may show others an older state


def describe_incomplete_parent(name: str, parent: Path | None) -> list[str]:
    """Returns a line where a stage starts from other weights than the last ones of the stage before it.

    That one has not ended, and its rates were still high; or its newer checkpoints are corrupt or were deleted.
    """
    if parent is None or not (what := describe_incomplete(parent)):
        return []
    resumed = f": `fledgling train {parent.parents[1].name}` resumes it" if is_of_unfinished_stage(parent) else ""
    return [f"{name} starts from {what}{resumed}"]


def drop_older_parent(saved: Path | None, parent: Path | None) -> Path | None:
    """Returns `parent`; None where a stage that is resumed began from a later checkpoint, which is corrupt or gone."""
    began_from = checkpoint.read_checkpoint_state(saved).get("parent") if saved else None
    is_older = parent is not None and isinstance(began_from, dict) and is_left_of(parent, began_from)
    return None if is_older else parent


def describe_derived(name: str, given: Recipe, derived: Recipe) -> list[str]:
    """Returns a line with the values that rules have filled and the numbers of these rules; none if there are none."""
    values = ", ".join(value.describe() for value in list_derived(given, derived))
    return [f"{name}: by the rules of fledgling/config/scaling_rules.py: {values}"] if values else []
