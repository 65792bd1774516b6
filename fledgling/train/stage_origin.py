"""What a stage starts from: the checkpoint that it resumes from, that of the stage before it, and its recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fledgling.config import Recipe, UserError
from fledgling.config.unused_settings import describe_unused
from fledgling.plan.derive import derive_recipe, list_derived
from fledgling.record import checkpoint
from fledgling.record.parent import describe_incomplete, find_parent, is_left_of, is_of_unfinished_stage
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
        parent: the checkpoint whose weights the stage starts, or once started, from; None: it starts from the seed, or
            the run no longer has them (`require_initial_weights`).
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
    parent = choose_parent(run_dir, saved, parent, init)
    recipe = recipe_from_checkpoint(recipe, init, notices.append)
    with world.main_process_first():
        recipe = recipe_with_adapter(recipe, run_dir, parent or saved, name)
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


def choose_parent(run_dir: Path, saved: Path | None, parent: Path | None, init: Path | None) -> Path | None:
    """Returns the checkpoint whose weights a stage starts, or once started, from; None: the seed's, or they are gone.

    Where a resumed stage began from a later checkpoint than `parent`, or `parent` and `init` are both None, it is the
    checkpoint of the run that has the weights which the stage began from: no other weights take their place.

    Args:
        run_dir: of the run.
        saved: the checkpoint that the stage resumes from; None: it starts.
        parent: the last checkpoint of the stage before it; None: there is none.
        init: the weights that the run was given; None: it was given none.
    """
    now = parent or init
    state = checkpoint.read_checkpoint_state(saved) if saved else {}
    began_from = find_parent(run_dir, state)
    if began_from is None or (now is not None and not is_left_of(now, state["parent"])):
        return now
    if began_from.path is None or checkpoint.inspect_checkpoint(began_from.path)["corrupt"]:
        return None
    return began_from.path


def require_initial_weights(origin: StageOrigin) -> None:
    """Raises UserError if a resumed stage began from weights that are needed again and that the run no longer has."""
    if origin.saved is None or origin.parent is not None:
        return
    began_from = find_parent(origin.run_dir, checkpoint.read_checkpoint_state(origin.saved))
    if began_from is None:  # the seed's
        return
    folder = origin.run_dir / (f"{began_from.stage}/checkpoints" if began_from.stage else INIT_DIR)
    name, lost = origin.name, f"step-{began_from.step:08d}"
    raise UserError(
        f"{name} compares with the weights that it began from, step {began_from.step:,} of "
        f"{began_from.stage or 'run.init_from'}, and {folder / lost} is corrupt or was deleted: put it back, or "
        f"restart the stage with `fledgling train {name} {origin.run_dir} --resume never`"
    )


def describe_derived(name: str, given: Recipe, derived: Recipe) -> list[str]:
    """Returns a line with the values that rules have filled and the numbers of these rules; none if there are none."""
    values = ", ".join(value.describe() for value in list_derived(given, derived))
    return [f"{name}: by the rules of fledgling/config/scaling_rules.py: {values}"] if values else []
