"""Recipes: what is read, what is refused and with which message, and that a written recipe is read back."""

import tomllib
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledgling.config import (
    ModelConfig,
    Recipe,
    RunConfig,
    StageConfig,
    UserError,
    dump_toml,
    load_recipe,
    recipe_names,
)
from fledgling.config.load import RENAMED_KEYS, parse_recipe


@pytest.fixture
def write(tmp_path):
    """Write a recipe file and return its path."""

    def write(text: str):
        path = tmp_path / "own.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_and_survives_writing(name, write):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.description
    assert load_recipe(write(dump_toml(recipe))) == recipe


def test_the_recipe_d20_is_the_published_run():
    recipe = load_recipe("d20-8xh100")
    assert recipe.pretrain.steps * recipe.pretrain.batch_tokens == 11_219_763_200
    assert (recipe.tokenizer.vocab_size, recipe.model.context, recipe.pretrain.micro_batch_size) == (
        65_536,
        2_048,
        32,
    )


def test_an_empty_file_is_all_defaults(write):
    recipe = load_recipe(write(""))
    assert recipe == Recipe(name="own")
    assert recipe.sft.train_on == "assistant" and recipe.pretrain.train_on == "all"


def test_a_partial_sft_table_keeps_its_own_default(write):
    assert load_recipe(write("[sft]\nsteps = 3")).sft == StageConfig(steps=3, train_on="assistant")


def test_recipes_are_frozen():
    with pytest.raises(FrozenInstanceError):
        load_recipe("quickstart").model.depth = 5


def test_overrides_are_toml_and_bare_words_are_text():
    given = [
        "model.depth=6",
        "run.out=runs/mine",
        "sft.mixture.spelling=1",
        "optimizer.adam_betas=[0.9, 0.95]",
    ]
    recipe = load_recipe("quickstart", [*given, "model.depth = 7"])
    assert recipe.model.depth == 7  # the last one wins
    assert recipe.run.out == "runs/mine"
    assert recipe.sft.mixture["spelling"] == 1.0 and "arithmetic" in recipe.sft.mixture
    assert recipe.optimizer.adam_betas == (0.9, 0.95)


def test_none_goes_back_to_derived():
    assert load_recipe("quickstart", ["model.width=none"]).model.width is None


def test_a_run_directory_is_a_recipe(tmp_path):
    recipe = load_recipe("quickstart", ["seed=9"])
    (tmp_path / "recipe.toml").write_text(dump_toml(recipe), encoding="utf-8")
    assert load_recipe(tmp_path) == replace(recipe, run=replace(recipe.run, out=str(tmp_path)))
    assert load_recipe(tmp_path, ["run.out=elsewhere"]).run.out == "elsewhere"


def test_a_run_given_by_its_directory_is_that_directory_however_it_is_named(tmp_path, monkeypatch):
    text = dump_toml(load_recipe("quickstart", ["run.out=runs/original"]))
    run = tmp_path / "runs" / "copy"
    run.mkdir(parents=True)
    for name, content in {"recipe.toml": text, "environment.json": "{}"}.items():
        (run / name).write_text(content, encoding="utf-8")
    (tmp_path / "link").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    for name in ("runs/copy", "runs/copy/", "./runs/../runs/copy", run, "link", "link/", "runs/copy/recipe.toml"):
        assert Path(load_recipe(name).run.out).samefile(run), name
    monkeypatch.chdir(run)
    assert load_recipe(".").run.out == str(run.resolve())
    monkeypatch.chdir(run.parent)
    assert load_recipe("copy").run.out == "copy"
    (run / "environment.json").unlink()  # a recipe.toml that a person wrote is no run
    assert load_recipe(run / "recipe.toml").run.out == "runs/original"


def test_a_directory_without_a_recipe_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"has no recipe\.toml, so it is not a run directory: .*--set run\.out="):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.dept=3", ['"model.dept"', 'did you mean "depth"']),
        ("modl.depth=3", ['"modl"', 'did you mean "model"']),
        ("model.depth=0", ["model.depth", "got 0", "at least 1"]),
        ("model.depth=-2", ["model.depth", "got -2"]),
        ("model.depth=4.5", ["model.depth", "whole number", "4.5"]),
        ("model.depth=true", ["model.depth", "whole number", "True"]),
        ("model.depth=deep", ["model.depth", "whole number", "'deep'"]),
        ("model=3", ["model", "table"]),
        ("model.depth", ["table.key=value"]),
        ("=3", ["table.key=value"]),
        ("seed.x=3", ["seed is a value"]),
        ("pretrain.decay_fraction=1.5", ["pretrain.decay_fraction", "at most 1"]),
        ("pretrain.learning_rate=0", ["pretrain.learning_rate", "above 0"]),
        ("pretrain.learning_rate=nan", ["pretrain.learning_rate", "finite"]),
        (
            "sft.learning_rate=2e-5",
            ["sft.learning_rate", "2e-05", "multiplies", "0.05 to 1", "matrix_lr", "adapter_lr"],
        ),
        ("rl.learning_rate=0.0009", ["rl.learning_rate", "at least 0.001"]),
        ("rl.target=assistant", ['unknown key "rl.target"', "every sampled token is learned"]),
        ("rl.batch_tokens=512", ['unknown key "rl.batch_tokens"', "prompts_per_round x group_size"]),
        ("sft.train_on=assistent", ["sft.train_on", 'did you mean "assistant"']),
        ("sft.mixture.spelling=-1", ["sft.mixture.spelling", "at least 0"]),
        ("rl.tasks={arithmetic = 0}", ["rl.tasks", "every weight is 0"]),
        ("rl.group_size=1", ["rl.group_size", "at least 2"]),
        ("optimizer.adam_betas=[0.9]", ["optimizer.adam_betas", "a list of 2"]),
        ("optimizer.adam_betas=[0.9, 1.0]", ["optimizer.adam_betas[1]"]),
        ("tokenizer.sources=text", ["tokenizer.sources", "a list"]),
        ("tokenizer.letter_tokens=1", ["tokenizer.letter_tokens", "true or false"]),
        ('stages=["sft", "pretrain"]', ["stages", "in this order"]),
        ('stages=["sff"]', ['"sff"', 'did you mean "sft"']),
        ("stages=[]", ["stages"]),
        ("stages=[1", ["not TOML"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(override, words):
    with pytest.raises(UserError) as caught:
        load_recipe("quickstart", [override])
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("table", RENAMED_KEYS)
def test_an_old_key_names_its_new_one(table):
    config = getattr(Recipe(), table)
    for old, new in RENAMED_KEYS[table].items():
        assert hasattr(config, new)
        with pytest.raises(UserError) as caught:
            load_recipe("quickstart", [f"{table}.{old}=1"])
        assert str(caught.value) == f'"{table}.{old}" was renamed to "{table}.{new}"'


def test_a_run_that_has_recorded_a_small_learning_rate_or_a_removed_key_is_read_and_an_override_is_refused(tmp_path):
    text = dump_toml(load_recipe("quickstart", ["rl.learning_rate=0.25"])).replace("learning_rate = 0.25", "target = 1")
    assert parse_recipe(text).rl.learning_rate is None, "as older versions wrote it"
    text = dump_toml(load_recipe("quickstart", ["rl.learning_rate=0.25"])).replace("0.25", "0.0002")
    for name, content in {"recipe.toml": text, "environment.json": "{}"}.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert load_recipe(tmp_path).rl.learning_rate == 0.0002, "a rule may give it"
    with pytest.raises(UserError, match=r"^rl\.learning_rate: got 0\.0002, expected at least 0\.001"):
        load_recipe(tmp_path, ["rl.learning_rate=0.0002"])


@pytest.mark.parametrize("key", ["rl.batch_tokens", "rl.train_on", "model.vocab_size"])
def test_a_key_that_nothing_reads_is_refused(key):
    with pytest.raises(UserError, match=f'unknown key "{key}"'):
        load_recipe("quickstart", [f"{key}=512"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("quikstart", ["quikstart", 'did you mean "quickstart"']),
        ("nowhere/own.toml", ["nowhere/own.toml", "TOML file"]),
        ("", ["no recipe"]),
    ],
)
def test_a_recipe_that_is_not_there(name, words):
    with pytest.raises(UserError) as caught:
        load_recipe(name)
    for word in words:
        assert word in str(caught.value)


def test_broken_toml_names_the_file(write):
    with pytest.raises(UserError, match=r"own\.toml cannot be read"):
        load_recipe(write("model = ["))


@given(
    out=st.text(st.characters(codec="utf-8"), max_size=20),
    names=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), st.floats(0.01, 1e300), max_size=3),
)
def test_any_text_survives_writing(out, names):
    recipe = replace(Recipe(), run=RunConfig(out=out), pretrain=StageConfig(mixture=names))
    read = tomllib.loads(dump_toml(recipe))
    assert read["run"]["out"] == out and read["pretrain"]["mixture"] == names


@given(
    depth=st.sampled_from([1, 2, 4, 12]),
    family=st.sampled_from(["fledgling", "gpt2", "llama"]),
    vocab_size=st.integers(1, 999),
)
def test_a_complete_model_configuration_survives_json_and_toml(depth, family, vocab_size):
    config = ModelConfig(depth=depth, family=family).resolve(vocab_size)
    assert ModelConfig.from_dict(config.to_dict()) == config
    table = config.unpin("vocab_size", "window_size")
    written = tomllib.loads(dump_toml(replace(Recipe(), model=table)))["model"]
    assert ModelConfig(**written).resolve(vocab_size) == config


def test_an_older_checkpoint_s_field_names_are_read():
    config = ModelConfig(depth=2, window_pattern="S", window_size=8).resolve(60)
    values = config.to_dict()
    names = {
        "intermediate_size": "hidden",
        "logit_softcap": "softcap",
        "tie_embeddings": "tied",
        "window_size": "window",
    }
    assert ModelConfig.from_dict({names.get(name, name): value for name, value in values.items()}) == config


def test_a_changed_depth_changes_only_what_is_not_pinned():
    recipe = load_recipe("quickstart", ["model.depth=6"])
    assert (recipe.resolve_model().depth, recipe.resolve_model().width) == (6, 256)
    assert recipe.model.unpin("width").resolve(60).width == 64 * 6
