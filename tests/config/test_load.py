"""Recipes: what is read, what is rejected and with which message, and that a written recipe is read back."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fledgling.config import (
    STAGES,
    Recipe,
    UserError,
    dump_toml,
    load_recipe,
    recipe_names,
)
from fledgling.config.load import REMOVED_KEYS, RENAMED_KEYS, RENAMED_VALUES, parse_recipe
from fledgling.config.run_marks import OF_A_RUN, OF_A_STAGE


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_and_survives_writing(name, write):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.description
    assert load_recipe(write(dump_toml(recipe))) == recipe


def test_overrides_are_toml_and_bare_words_are_text():
    given = [
        "model.depth=6",
        "run.out=runs/mine",
        "sft.mixture.spelling=1",
        "optimizer.adam_betas=[0.9, 0.95]",
        "optimizer.adapter_lr=.006",
    ]
    recipe = load_recipe("quickstart", [*given, "model.depth = 7"])
    assert recipe.model.depth == 7  # the last one wins
    assert recipe.run.out == "runs/mine"
    assert recipe.sft.mixture["spelling"] == 1.0 and "arithmetic" in recipe.sft.mixture
    assert recipe.optimizer.adam_betas == (0.9, 0.95) and recipe.optimizer.adapter_lr == 0.006


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
    (tmp_path / "link.toml").symlink_to(run / "recipe.toml")
    monkeypatch.chdir(tmp_path)
    for name in (
        "link.toml",
        "runs/copy",
        "runs/copy/",
        "./runs/../runs/copy",
        run,
        "link",
        "link/",
        "runs/copy/recipe.toml",
    ):
        assert Path(load_recipe(name).run.out).samefile(run), name
    monkeypatch.chdir(run)
    assert load_recipe(".").run.out == str(run.resolve())
    monkeypatch.chdir(run.parent)
    assert load_recipe("copy").run.out == "copy"
    (run / "environment.json").unlink()  # a recipe.toml that a person wrote is no run
    assert load_recipe(run / "recipe.toml").run.out == "runs/original"


@pytest.mark.parametrize("name", [*OF_A_RUN, *(f"{stage}/{mark}" for stage in STAGES for mark in OF_A_STAGE)])
def test_a_recipe_next_to_anything_that_only_a_run_has_is_that_run(name, tmp_path):
    """A copy without environment.json: half-written, or the recipe and the checkpoints alone."""
    original, copy = tmp_path / "original", tmp_path / "copy"
    text = dump_toml(load_recipe("quickstart", [f"run.out={original}"]))
    for run in (original, copy):
        (run / name).parent.mkdir(parents=True)
        (run / name).write_text("{}")
        (run / "recipe.toml").write_text(text)
    assert Path(load_recipe(copy / "recipe.toml").run.out).samefile(copy)


def test_a_recipe_of_another_run_that_was_copied_alone_is_rejected(tmp_path, monkeypatch):
    """A restart would empty the run that it was copied from."""
    monkeypatch.chdir(tmp_path)
    original, copy = Path("runs/a"), Path("b/recipe.toml")
    text = dump_toml(load_recipe("quickstart", [f"run.out={original}"]))
    for path in (original / "recipe.toml", original / "environment.json", copy):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if path.name == "recipe.toml" else "{}")
    tokenizer = Path("b/tokenizer/tokenizer.json")  # `fledgling tokenizer train` writes one anywhere
    for _ in range(2):
        with pytest.raises(UserError, match=r"^b/recipe\.toml was written by the run runs/a, and b has no stage"):
            load_recipe(copy)
        tokenizer.parent.mkdir(exist_ok=True)
        tokenizer.write_text("{}")
    assert load_recipe(copy, ["run.out=b"]).run.out == "b" and load_recipe("b").run.out == "b"
    copy.write_text('[run]\nout = "runs/a"\n')  # a person's recipe may have that name, and resume its run
    assert load_recipe(copy).run.out == "runs/a"
    copy.write_text(text)
    shutil.rmtree(original)
    assert load_recipe(copy).run.out == "runs/a", "there is no other run"


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


def test_a_run_that_has_recorded_a_small_learning_rate_or_a_removed_key_is_read_and_an_override_is_rejected(tmp_path):
    text = dump_toml(load_recipe("quickstart", ["rl.learning_rate=0.25"])).replace("learning_rate = 0.25", "target = 1")
    assert parse_recipe(text).rl.learning_rate is None, "as older versions wrote it"
    text = dump_toml(load_recipe("quickstart", ["rl.learning_rate=0.25"])).replace("0.25", "0.0002")
    for name, content in {"recipe.toml": text, "environment.json": "{}"}.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert load_recipe(tmp_path).rl.learning_rate == 0.0002, "a rule may give it"
    with pytest.raises(UserError, match=r"^rl\.learning_rate: got 0\.0002, expected at least 0\.001"):
        load_recipe(tmp_path, ["rl.learning_rate=0.0002"])


def write_in_old_words(recipe: Recipe) -> str:
    """Returns a recipe as TOML with every key that was renamed since, and every removed one."""
    table, lines = "", []
    for line in dump_toml(recipe).splitlines():
        if line.startswith("["):
            table = line.strip("[]")
            lines += [line, *(f"{key} = 1" for key in REMOVED_KEYS.get(table, {}))]
        else:
            key, sign, value = line.partition(" = ")
            old = {new: old for old, new in RENAMED_KEYS.get(table, {}).items()}
            lines.append(f"{old.get(key, key)}{sign}{value}")
    return "\n".join(lines)


def test_a_run_or_sweep_that_an_older_version_recorded_is_read_and_an_override_in_old_words_is_rejected(tmp_path):
    recipe = load_recipe("quickstart", ["rl.clip_ratio_high=0.3", "optimizer.matrix_lr=0.02", f'run.out="{tmp_path}"'])
    text = write_in_old_words(recipe)
    assert "further_targets = " in text and "clip_high = " in text and "batch_tokens = 1" in text
    for file, name in (("recipe.toml", tmp_path), ("sweep.toml", tmp_path / "sweep.toml")):
        (tmp_path / file).write_text(text, encoding="utf-8")
        assert load_recipe(name) == recipe
        for table, keys in RENAMED_KEYS.items():
            for old in keys:
                with pytest.raises(UserError, match=f'"{table}.{old}" was renamed'):
                    load_recipe(name, [f"{table}.{old}=1"])
    (tmp_path / "recipe.toml").write_text("[rl]\ngroup = 4\ngroup_size = 8\n", encoding="utf-8")
    with pytest.raises(UserError, match=r'^"rl\.group" was renamed to "rl\.group_size"'):
        load_recipe(tmp_path)


def test_a_model_that_was_recorded_before_there_were_presets_is_plain(tmp_path):
    (tmp_path / "recipe.toml").write_text("[model]\ndepth = 2\n", encoding="utf-8")
    assert load_recipe(tmp_path).model.preset == "nanochat-2025"
    assert parse_recipe("[model]\ndepth = 2\n").model.preset == "nanochat-2025"
    own = tmp_path / "own.toml"
    own.write_text('name = "own"\n[model]\ndepth = 2\n', encoding="utf-8")
    assert load_recipe(own).model.preset == "nanochat-2026", "a recipe that a user writes has today's default"
    llama = '[model]\nfamily = "llama"\n'
    assert parse_recipe(f'{llama}preset = "nanochat-2025"\n') == parse_recipe(llama), "no other family has presets"


def test_an_empty_recipe_of_a_run_is_not_the_default_recipe(tmp_path):
    (tmp_path / "recipe.toml").touch()
    with pytest.raises(UserError, match=r"recipe\.toml is empty, so it is no recipe of a run: put it back from"):
        load_recipe(tmp_path)


def test_a_value_that_was_renamed_is_read_in_an_old_run(tmp_path):
    for name, values in RENAMED_VALUES.items():
        table, _, key = name.partition(".")
        for old, new in values.items():
            (tmp_path / "recipe.toml").write_text(f'[{table}]\n{key} = "{old}"\n', encoding="utf-8")
            assert getattr(getattr(load_recipe(tmp_path), table), key) == new


@pytest.mark.parametrize("key", ["rl.batch_tokens", "rl.train_on", "model.vocab_size"])
def test_a_key_that_nothing_reads_is_rejected(key):
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
def test_a_recipe_that_does_not_exist_is_rejected_in_words_that_help(name, words):
    with pytest.raises(UserError) as caught:
        load_recipe(name)
    for word in words:
        assert word in str(caught.value)


def test_broken_toml_names_the_file(write):
    with pytest.raises(UserError, match=r"own\.toml cannot be read"):
        load_recipe(write("model = ["))


def test_a_vocabulary_below_its_smallest_size_is_rejected_unless_it_is_given():
    with pytest.raises(UserError, match=r"vocab_size is 300; .* take 317: choose at least that"):
        load_recipe("quickstart", ["tokenizer.vocab_size=300"])
    with pytest.raises(UserError, match=r"tokenizer.max_digits: got 4"):
        load_recipe("quickstart", ["tokenizer.max_digits=4"])
    assert load_recipe("quickstart", ["tokenizer.vocab_size=265", "tokenizer.letter_tokens=false"])
    assert load_recipe("quickstart", ["tokenizer.vocab_size=300", "run.init_from=elsewhere"])
