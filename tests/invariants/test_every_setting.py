"""Every key of a recipe, set to another value than its default, has the effect it names, or is rejected in one line.

`settings/` has a table with a value for each key, and the tests that set it. Here these tables are compared with the
dataclasses, so that a new key needs a line there.
"""

import typing
from dataclasses import fields, replace

import pytest

from fledgling.config import OptimizerConfig, Recipe, RLConfig, UserError, load_recipe

from .settings.test_model_settings import ADAPTER, ADAPTER_ELSEWHERE, MODEL, OPTIMIZER
from .settings.test_rl_settings import RL, RL_ELSEWHERE
from .settings.test_run_settings import RUN, TOKENIZER, TOP
from .settings.test_stage_settings import STAGES, covered_keys

DISTILL = "teacher stages match weight temperature every until top_k".split()  # noqa: SIM905 - tests/train/distill


def keys_of(cls: type) -> set[str]:
    return {field.name for field in fields(cls) if not field.metadata.get("internal")}


def test_every_key_has_a_value_here():
    hints = typing.get_type_hints(Recipe)
    tables = {name: hint for name, hint in hints.items() if hasattr(hint, "__dataclass_fields__")}
    assert keys_of(Recipe) - tables.keys() == set(TOP)
    assert keys_of(tables["model"]) == set(MODEL)
    assert keys_of(tables["optimizer"]) == set(OPTIMIZER)
    assert keys_of(tables["adapter"]) == {*ADAPTER, *ADAPTER_ELSEWHERE}
    assert keys_of(tables["distill"]) == set(DISTILL)
    assert keys_of(tables["tokenizer"]) == set(TOKENIZER)
    assert keys_of(tables["run"]) == set(RUN)
    for stage in STAGES:  # a test of the same setting in another stage covers nothing here
        assert keys_of(tables[stage]) == covered_keys(stage) | ({*RL, *RL_ELSEWHERE} if stage == "rl" else set()), stage
    assert tables.keys() == {"model", "optimizer", "adapter", "distill", "tokenizer", "run", *STAGES}, (
        "a new table needs tests here"
    )


def limited_keys() -> list[tuple[str, float]]:
    """Every key with a lowest value."""
    found = []
    for name, hint in typing.get_type_hints(Recipe).items():
        for field in fields(hint) if hasattr(hint, "__dataclass_fields__") else ():
            default = field.default
            if "low" in field.metadata and not isinstance(default, tuple) and field.type.split("[")[0] != "dict":
                found.append((f"{name}.{field.name}", field.metadata["low"]))
    return found


def test_every_value_below_its_range_is_rejected_by_name():
    keys = limited_keys()
    assert len(keys) > 80
    for key, low in keys:
        with pytest.raises(UserError, match=rf"^{key}: ") as caught:
            load_recipe("quickstart", [f"{key}={int(low) - 1}"])
        assert "expected" in str(caught.value) and "\n" not in str(caught.value)


def test_a_value_of_another_type_is_rejected_by_name():
    for name, hint in typing.get_type_hints(Recipe).items():
        for field in fields(hint) if hasattr(hint, "__dataclass_fields__") else ():
            if not field.metadata.get("internal"):
                with pytest.raises(UserError, match=rf"{name}\.{field.name}"):
                    load_recipe("quickstart", [f"{name}.{field.name}=1979-05-27"])


def test_the_defaults_are_not_the_values_of_these_tables():
    for table, config in ((OPTIMIZER, OptimizerConfig()), (RL, RLConfig())):
        for key, (value, others) in table.items():
            of_table = {name: other for name, other in others.items() if name in vars(config)}
            assert getattr(replace(config, **of_table), key) != value, key
