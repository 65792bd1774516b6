"""Values of a stage's table that its builder would reject, found before the machine is measured or anything is written.

`check_recipe.py` finds them among all problems of all stages; this is what the start of one stage needs of it.
"""

from __future__ import annotations

import math
from pathlib import Path

from fledgling.config import DPOConfig, Recipe, RLConfig
from fledgling.optim.gradients import is_deterministic
from fledgling.plan.published_sizes import published_sizes
from fledgling.plan.split import require_row_each
from fledgling.plan.stage_length import SourceSize, derive_length, fixed_rows
from fledgling.record.loggers import require_loggers
from fledgling.runtime.world import World
from fledgling.tasks import is_generated_source, load_task
from fledgling.train.check_outside import require_adapter, require_fitting_teacher
from fledgling.train.distill.build import require_valid_teaching
from fledgling.train.dpo import require_valid_dpo
from fledgling.train.init_from import find_model_config
from fledgling.train.rl.build import require_valid_rl_config


def require_buildable(recipe: Recipe, name: str, world: World) -> None:
    """Raises UserError for what the builder of stage `name` would reject; a stage that has begun was built before."""
    run_dir = Path(recipe.run.out)
    if (run_dir / name / "metrics.jsonl").is_file():
        return
    table, config = recipe.stage_config(name), find_model_config(recipe, run_dir)
    require_loggers(recipe.run.loggers)
    is_deterministic(recipe.optimizer, world)
    require_adapter(recipe, name, config, name != recipe.stages[0] or recipe.run.init_from is not None)
    require_valid_teaching(recipe, name, config)
    require_fitting_teacher(recipe, name, config)
    if isinstance(table, RLConfig):
        require_valid_rl_config(table, world)
    elif isinstance(table, DPOConfig):
        require_valid_dpo(recipe)
    else:
        rows = fixed_rows(name, table, config)
        if name != "pretrain" or table.num_epochs is not None:
            tasks = (source for source in table.mixture if table.steps is None and is_generated_source(source))
            sizes = {task: SourceSize(len(load_task(task)) or math.inf) for task in tasks}
            length = derive_length(recipe, name, config, published_sizes(config.context) | sizes)
            rows = length[0] if length else rows
        if rows is not None:
            require_row_each(name, table, rows, world.size)
