"""Reading a recipe: a TOML file and `table.key=value` overrides become one checked `Recipe`."""

from __future__ import annotations

import functools
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, replace
from pathlib import Path
from typing import Any, Literal, Union

from fledgling.config.errors import UserError, did_you_mean
from fledgling.config.feature_presets import name_preset
from fledgling.config.model import LEGACY_FIELDS
from fledgling.config.recipe import STAGES, Recipe, require_vocabulary
from fledgling.config.recorded_recipe import explain_lost
from fledgling.config.run_marks import RECIPE_FILE, is_run_directory, require_own_recipe

RECIPES_DIR = Path(__file__).parent.parent / "recipes"
SWEEP_SETTINGS = "sweep.toml"  # of a sweep: the recipe that all its runs share

_LOOP_KEYS = {
    "micro_batch": "micro_batch_size",
    "rate": "learning_rate",
    "warmup": "warmup_steps",
    "decay": "decay_fraction",
    "final": "final_lr_fraction",
    "keep": "keep_checkpoints",
    "passes": "num_epochs",
}
_STAGE_KEYS = {
    **_LOOP_KEYS,
    "target": "train_on",
    "further_targets": "mtp_targets",
    "further_target_steps": "mtp_decay_steps",
}
RENAMED_KEYS: dict[str, dict[str, str]] = {  # table -> old key -> key
    "tokenizer": {"characters": "max_characters", "digits": "max_digits", "letters": "letter_tokens"},
    "model": LEGACY_FIELDS,
    "optimizer": {
        "matrix_rate": "matrix_lr",
        "embedding_rate": "embedding_lr",
        "head_rate": "head_lr",
        "scalar_rate": "scalar_lr",
        "cautious_decay": "cautious_weight_decay",
        "matrix_rule": "matrix_optimizer",
        "zero": "zero_stage",
        "exact": "deterministic",
    },
    "pretrain": _STAGE_KEYS,
    "midtrain": _STAGE_KEYS,
    "sft": _STAGE_KEYS,
    "dpo": {**_LOOP_KEYS, "batch": "batch_size"},
    "rl": {
        **_LOOP_KEYS,
        "prompts": "prompts_per_round",
        "group": "group_size",
        "clip": "clip_ratio",
        "clip_high": "clip_ratio_high",
        "kl": "kl_weight",
        "entropy": "entropy_weight",
        "discount": "gamma",
        "trace": "gae_lambda",
        "drop_silent": "drop_uniform_groups",
        "normalize": "loss_normalization",
        "advantage": "advantage_normalization",
        "max_tokens": "max_new_tokens",
        "reward_seconds": "reward_timeout",
        "length_free": "length_penalty_free_tokens",
    },
    "run": {"rollbacks": "max_rollbacks", "sinks": "loggers", "start_from": "init_from"},
}
RENAMED_VALUES: dict[str, dict[str, str]] = {  # "table.key", as it is called now -> old value -> value
    "rl.advantage_normalization": {"centred": "centered"},
}
REMOVED_KEYS: dict[str, dict[str, str]] = {  # table -> old key -> why there is none
    "rl": {
        "target": "every sampled token is learned",
        "batch_tokens": "a round has prompts_per_round x group_size answers, and minibatches divides them into steps",
    },
}
MIN_LEARNING_RATE = 1e-3  # of a stage: a factor of [optimizer]'s rates. Smaller ones are meant as rates themselves


def recipe_names() -> list[str]:
    """Returns the names of the recipes that come with the package, sorted."""
    return sorted(path.stem for path in RECIPES_DIR.glob("*.toml"))


def load_recipe(name_or_path: str | Path = "quickstart", overrides: Iterable[str] = ()) -> Recipe:
    """Returns a recipe (of that name, file or run directory), changed by `table.key=value` overrides in order.

    A run directory, or the recipe.toml in it, is that run: its path replaces the `run.out` that it was started with, so
    that a copied, moved or linked run is read and written where it is. Only an override names another directory.
    Raises UserError, with the name of the key, for anything unknown, mistyped or out of range, and for the recipe.toml
    of another run that was copied alone.
    """
    path = _find_recipe_file(str(name_or_path))
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} cannot be read as a recipe: {error}") from error
    if not table and path.name == RECIPE_FILE:  # a recipe of defaults alone would be another run's
        raise UserError(
            f'{path} is empty, so it is no recipe of a run: put it back from "recipe" of a checkpoint\'s state.json'
        )
    table.setdefault("name", path.stem)
    overrides, stated = list(overrides), table
    is_run = Path(name_or_path).is_dir() or (path.name == RECIPE_FILE and is_run_directory(path.parent))
    if is_run and (reason := explain_lost(table, path.parent)):
        raise UserError(f"{path} {reason}")
    if is_run or path.name == SWEEP_SETTINGS:
        _translate_old_names(table)
    if is_run:
        stated = {}  # what a run has recorded may come of a rule
        run_dir = path.parent if path.parent.name else path.parent.resolve()
        if isinstance(table.setdefault("run", {}), dict):
            table["run"]["out"] = str(run_dir)
    else:
        require_own_recipe(path, table, overrides)
    recipe = _build_recipe(table, overrides)
    for override in overrides if stated is not table else ():
        _apply_override(stated, override)
    recipe = replace(recipe, stated=_list_stated(stated))
    _require_factors(recipe)
    if not is_run and recipe.run.init_from is None:
        require_vocabulary(recipe.tokenizer.vocab_size, recipe.tokenizer.letter_tokens)
    return recipe


def _require_factors(recipe: Recipe) -> None:
    """Raises UserError for a learning rate of a stage, given by the user, that is a rate and no factor of rates.

    What a run has recorded is not checked: a rule may give less, and a run that has begun can be resumed.
    """
    for name in STAGES:
        value = recipe.stage_config(name).learning_rate
        if f"{name}.learning_rate" in recipe.stated and value is not None and value < MIN_LEARNING_RATE:
            raise UserError(
                f"{name}.learning_rate: got {value:g}, expected at least {MIN_LEARNING_RATE:g}: it multiplies the "
                "rates of [optimizer], usually by 0.05 to 1; rates themselves are optimizer.matrix_lr, embedding_lr, "
                "head_lr and scalar_lr, and adapter_lr for an adapter"
            )


def _list_stated(table: Mapping[str, Any]) -> frozenset[str]:
    """Returns the keys of a recipe's tables as "table.key"."""
    return frozenset(f"{name}.{key}" for name, inner in table.items() if isinstance(inner, dict) for key in inner)


def parse_recipe(text: str) -> Recipe:
    """Returns the recipe that `dump_toml` wrote as `text`, also with the keys of older versions. Raises UserError."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"not a recipe: {error}") from error
    _translate_old_names(table)
    return _build_recipe(table, ())


def _translate_old_names(table: dict[str, Any]) -> None:
    """Replaces the keys and values of older versions in the tables of a recipe that a run or a sweep has recorded.

    It stays readable after a key was renamed. What a user writes is not translated: `_unknown_key` names the key, as
    it does where the old and the new one are both there.
    """
    for name in {*RENAMED_KEYS, *REMOVED_KEYS}:
        if not isinstance(inner := table.get(name), dict):
            continue
        renamed, removed = RENAMED_KEYS.get(name, {}), REMOVED_KEYS.get(name, {})
        kept = {key: value for key, value in inner.items() if key not in removed}
        table[name] = {key if (new := renamed.get(key, key)) in kept else new: value for key, value in kept.items()}
    if isinstance(model := table.get("model"), dict):
        name_preset(model)
    for name, values in RENAMED_VALUES.items():
        owner, _, key = name.partition(".")
        inner = table.get(owner)
        if isinstance(inner, dict) and isinstance(value := inner.get(key), str):
            inner[key] = values.get(value, value)


def _build_recipe(table: dict[str, Any], overrides: Iterable[str]) -> Recipe:
    for override in overrides:
        _apply_override(table, override)
    recipe = _build_config(Recipe, table, "")
    _check_stages(recipe)
    return recipe


def _find_recipe_file(name_or_path: str) -> Path:
    """Returns the file of a recipe given by name, path or run directory."""
    path = Path(name_or_path)
    if path.is_dir() and (path / RECIPE_FILE).is_file():
        return path / RECIPE_FILE
    if path.is_file():
        is_link = path.name != RECIPE_FILE and path.resolve().name == RECIPE_FILE  # to a run's recipe: it is that run
        return path.resolve() if is_link else path
    shipped = RECIPES_DIR / f"{name_or_path}.toml"
    if path.name == name_or_path and shipped.is_file():
        return shipped
    if path.is_dir():
        raise UserError(
            f"{path} has no {RECIPE_FILE}, so it is not a run directory: give the recipe, with --set run.out={path}"
        )
    if name_or_path.endswith(".toml") or path.name != name_or_path:
        raise UserError(f"no recipe at {name_or_path}: expected a TOML file, or one of {', '.join(recipe_names())}")
    names = recipe_names()
    raise UserError(f'no recipe "{name_or_path}": there are {", ".join(names)}{did_you_mean(name_or_path, names)}')


def _apply_override(table: dict[str, Any], override: str) -> None:
    """Sets `table.key=value` in the nested dictionary; the value is TOML or a bare word; none removes the key."""
    dotted, sign, text = override.partition("=")
    keys = [key.strip().strip('"') for key in dotted.split(".")]
    if not sign or not all(keys):
        raise UserError(f'override "{override}": expected table.key=value, for example model.depth=6')
    *tables, last = keys
    for key in tables:
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            raise UserError(f'override "{override}": {key} is a value, not a table')
        table = inner
    text = text.strip()
    if text.lower() == "none":  # TOML has no null: removes the key, so that the default applies
        table.pop(last, None)
        return
    text = re.sub(r"^([+-]?)\.(\d)", r"\g<1>0.\2", text)  # .5 is a number, though none of TOML's
    try:
        table[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        if re.match(r"""[\[{"']""", text):
            raise UserError(f'override "{override}": the value is not TOML: {error}') from error
        table[last] = text


@functools.cache
def _type_hints(cls: type) -> dict[str, Any]:
    """Returns the type of each field of a dataclass. Python evaluates the text of each hint again in every call."""
    return typing.get_type_hints(cls)


def _build_config(cls: type, table: Mapping[str, Any], where: str) -> Any:
    """Builds the dataclass `cls` from a TOML table; `where` is the prefix of its keys in error messages ("rl.")."""
    known = {entry.name: entry for entry in fields(cls) if not entry.metadata.get("internal")}
    hints = _type_hints(cls)
    values = {}
    for key, value in table.items():
        name = f"{where}{key}"
        if key not in known:
            raise _unknown_key(where, key, value, known)
        if isinstance(hints[key], type) and hasattr(hints[key], "__dataclass_fields__"):
            if not isinstance(value, dict):
                raise UserError(f"{name}: expected a table [{name}], got {value!r}")
            value = {**_changed_defaults(known[key], hints[key]), **value}
            values[key] = _build_config(hints[key], value, f"{name}.")
        else:
            values[key] = _convert(name, hints[key], value)
            _check_range(name, known[key], values[key])
    return cls(**values)


def _unknown_key(where: str, key: str, value: Any, known: Iterable[str]) -> UserError:
    """Returns the error for an unknown key: its new name, why there is none, a similar key, or all of the table."""
    if new := RENAMED_KEYS.get(where[:-1], {}).get(key):
        return UserError(f'"{where}{key}" was renamed to "{where}{new}"')
    if reason := REMOVED_KEYS.get(where[:-1], {}).get(key):
        return UserError(f'unknown key "{where}{key}": [{where[:-1]}] has none, because {reason}; leave it out')
    kind = "table" if isinstance(value, dict) else "key"
    owner = f"[{where[:-1]}] has" if where else "a recipe has"
    hint = did_you_mean(key, known) or f": {owner} {', '.join(known)}"
    return UserError(f'unknown {kind} "{where}{key}"{hint}')


def _changed_defaults(entry: Field[Any], cls: type) -> dict[str, Any]:
    """Returns the defaults of a table of `Recipe` that differ from those of its class: [sft] trains on "assistant"."""
    if entry.default_factory is MISSING:
        return {}
    own, usual = entry.default_factory(), cls()
    return {f.name: getattr(own, f.name) for f in fields(cls) if getattr(own, f.name) != getattr(usual, f.name)}


_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _convert(name: str, hint: Any, value: Any) -> Any:
    """Returns `value` as the type `hint`; the only conversion is from a whole number to a float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, Union):
        return _convert(name, next(a for a in arguments if a is not type(None)), value)
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{name}: expected a table of names and weights, got {value!r}")
        return {key: _convert(f"{name}.{key}", arguments[1], inner) for key, inner in value.items()}
    if origin is tuple:
        open_ended = arguments[-1] is Ellipsis
        if not isinstance(value, list) or not (open_ended or len(value) == len(arguments)):
            size = "a list" if open_ended else f"a list of {len(arguments)}"
            raise UserError(f"{name}: expected {size}, got {value!r}")
        return tuple(_convert(f"{name}[{i}]", arguments[0], inner) for i, inner in enumerate(value))
    if origin is Literal:
        hint = str
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise UserError(f"{name}: expected {_TYPE_NAMES[hint]}, got {value!r}")
    return value


def _check_range(name: str, entry: Field[Any], value: Any) -> None:
    """Raises UserError if a value, or an element of it, is outside the range that its field declares."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_range(f"{name}.{key}", entry, inner)
        if value and not any(value.values()):
            raise UserError(f"{name}: every weight is 0; give at least one a weight above 0")
        return
    if isinstance(value, tuple):
        for i, inner in enumerate(value):
            _check_range(f"{name}[{i}]", entry, inner)
        return
    limits = entry.metadata
    if "choices" in limits and value not in limits["choices"]:
        known = ", ".join(limits["choices"])
        raise UserError(f'{name}: got "{value}", expected one of {known}{did_you_mean(value, limits["choices"])}')
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}: got {value}, expected a finite number")
    if "low" not in limits or isinstance(value, str):
        return
    low, high, above = limits["low"], limits.get("high", math.inf), limits.get("above", False)
    if value < low or value > high or (above and value == low):
        bound = f"above {low:g}" if above else f"at least {low:g}"
        limit = f" and at most {high:g}" if high < 2**53 or value > high else ""
        raise UserError(f"{name}: got {value}, expected {bound}{limit}")


def _check_stages(recipe: Recipe) -> None:
    """Raises UserError unless the recipe names known stages, once each, in their order."""
    for name in recipe.stages:
        recipe.stage_config(name)
    if list(recipe.stages) != [name for name in STAGES if name in recipe.stages] or not recipe.stages:
        raise UserError(f"stages: got {list(recipe.stages)}, expected some of {list(STAGES)}, each once, in this order")
