"""Recipes: every setting of a run, as frozen dataclasses that are read strictly from TOML.

Start with `recipe.py` (the tables and their defaults) and `model.py` (the architecture, with `open_families.py` for the
families of open models, `feature_presets.py` for the optional features of our own); `adapter.py` and `distill.py` have
a table each. `load.py` reads a file and its overrides, checks the whole before any work starts, and names the key of
every mistake (`errors.py`); `toml.py` writes a recipe into the run directory, from which it loads again to an equal
value, and `recorded_recipe.py` finds what was lost of it. `run_marks.py` says which folder is a run, and so which
recipe.toml is a run's.
`fields.py` declares a default with its range, `variants.py` what an objective or an algorithm implies;
`scaling_rules.py` has the rules by which rates, weight decay, warm-up and horizon follow from the size of a model;
`changes.py` says what a changed setting does to a run that is resumed, `unused_settings.py` which ones another setting
switches off (of the model: `unused_model_settings.py`), `differences.py` what two recipes differ in.

No module here imports torch or derives a value from the data or the machine.
"""

from fledgling.config.adapter import AdapterConfig
from fledgling.config.distill import DistillConfig
from fledgling.config.errors import UserError, did_you_mean, require_number, show_name
from fledgling.config.load import load_recipe, recipe_names
from fledgling.config.model import ModelConfig
from fledgling.config.recipe import (
    DEFAULT_STAGES,
    PHASES,
    STAGES,
    DPOConfig,
    LoopConfig,
    OptimizerConfig,
    Recipe,
    RLConfig,
    RunConfig,
    StageConfig,
    TokenizerConfig,
)
from fledgling.config.toml import dump_toml

__all__ = [
    "DEFAULT_STAGES",
    "PHASES",
    "STAGES",
    "AdapterConfig",
    "DPOConfig",
    "DistillConfig",
    "LoopConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RLConfig",
    "Recipe",
    "RunConfig",
    "StageConfig",
    "TokenizerConfig",
    "UserError",
    "did_you_mean",
    "dump_toml",
    "load_recipe",
    "recipe_names",
    "require_number",
    "show_name",
]
