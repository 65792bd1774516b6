"""The files that DPO and RL read as they are in every start: pairs, questions, environments, rewards, reward models.

For a module that a user names it is the module's file alone, without what it imports. No tokens of them are kept in the
run, so a checkpoint records a digest of each (`PreparedData.record_files`), by which a resumed stage reports that they
were edited, and `fledgling verify` that they are not those of the steps.
"""

from __future__ import annotations

from pathlib import Path

from fledgling.config import Recipe, UserError
from fledgling.files import split_columns
from fledgling.record.atomic_directory import MANIFEST
from fledgling.record.checkpoint import resolve_checkpoint
from fledgling.runtime.user_code import find_module_file
from fledgling.tasks import ENVIRONMENT_PREFIX, load_task
from fledgling.train.rl.model_reward import MODEL_PREFIX


class OtherFileError(UserError):
    """A file outside the run is not the one that the steps of a stage were trained with."""


def list_read_files(recipe: Recipe, stage: str) -> dict[str, list[Path]]:
    """Returns the files of a stage that are here, by what a checkpoint calls them; {} where it reads tokens alone.

    Raises UserError for a task or a reward model that is not there.
    """
    found: dict[str, list[Path]] = {}
    if stage == "dpo" and recipe.dpo.pairs:
        found["dpo.pairs"] = [Path(split_columns(recipe.dpo.pairs)[0])]
    if stage == "rl":
        for name in (name for name, weight in recipe.rl.tasks.items() if weight > 0):
            found[f"rl.tasks {name}"] = load_task(name, recipe.run.data_dir).files()
        rewards = [name for name, weight in recipe.rl.rewards.items() if weight > 0]
        found["rl.rewards"] = [Path(name.rpartition(":")[0]) for name in rewards if ".py:" in name]
        for name in (name for name in rewards if name.startswith(MODEL_PREFIX)):
            found[f"rl.rewards {name}"] = [resolve_checkpoint(name.removeprefix(MODEL_PREFIX)) / MANIFEST]
        modules = [("rl.rewards", name, name) for name in rewards if not name.startswith(MODEL_PREFIX)]
        tasks = [name for name, weight in recipe.rl.tasks.items() if weight > 0 and name.startswith(ENVIRONMENT_PREFIX)]
        modules += [("rl.tasks", name, name.removeprefix(ENVIRONMENT_PREFIX)) for name in tasks]
        for key, name, spec in modules:
            file = find_module_file(spec.rpartition(":")[0]) if ":" in spec and ".py:" not in spec else None
            found |= {f"{key} {name}": [file]} if file else {}
    present = {name: [file for file in files if file.is_file()] for name, files in found.items()}
    return {name: files for name, files in present.items() if files}
