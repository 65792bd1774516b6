"""Tables of a recipe: their defaults, and that they are values."""

from dataclasses import FrozenInstanceError

import pytest

from fledgling.config import Recipe, StageConfig, load_recipe


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


def test_a_changed_depth_changes_only_what_is_not_pinned():
    recipe = load_recipe("quickstart", ["model.depth=6"])
    assert (recipe.resolve_model().depth, recipe.resolve_model().width) == (6, 256)
    assert recipe.model.unpin("width").resolve(60).width == 64 * 6
