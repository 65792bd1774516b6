"""The recipe of a benchmark of one model: the quickstart's with a model of another size, and with what was set."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from fledgling.config import Recipe, UserError, load_recipe

OPTIONS = {"model.depth": "--depth", "model.context": "--context", "tokenizer.vocab_size": "--vocab-size"}
DERIVED = ("width", "heads")  # of a model, from its depth
PLAIN = ("model.preset=nanochat-2025",)  # no optional features, as in other programs
WEIGHTS = ("run.init_from", "adapter.init_from")


def load_sized_recipe(
    overrides: Sequence[str], tables: Collection[str], depth: int, vocab_size: int, context: int
) -> Recipe:
    """Returns the quickstart recipe with a plain model of another size, for a benchmark that reads some of its tables.

    Args:
        overrides: `table.key=value`, as given by `--set`.
        tables: that the benchmark reads.
        depth: of the model; width and heads follow where they are not set.
        vocab_size: of the model.
        context: of the model.

    Raises:
        UserError: an override is of another table, or names weights, or an option of the command decides it.
    """
    names = [override.partition("=")[0].strip() for override in overrides]
    for name in names:
        if name in OPTIONS:
            raise UserError(f"--set {name}: this benchmark has an option for it, {OPTIONS[name]}")
        if name in WEIGHTS:
            raise UserError(f"--set {name}: this benchmark's weights are random; leave it out")
        if name.partition(".")[0] not in tables:
            raise UserError(f"--set {name}: expected a setting that this benchmark reads, of {', '.join(tables)}")
    opened = [name for name in DERIVED if f"model.{name}" not in names]
    return with_model_size(load_recipe("quickstart", (*PLAIN, *overrides)), depth, vocab_size, context, opened)


def with_model_size(
    recipe: Recipe, depth: int, vocab_size: int, context: int, derived: Sequence[str] = DERIVED
) -> Recipe:
    """Returns the recipe with a model of another size.

    Args:
        recipe: to change.
        depth: of the model.
        vocab_size: of the model and its tokenizer.
        context: of the model.
        derived: fields of the model that follow from the depth.
    """
    tokenizer = replace(recipe.tokenizer, vocab_size=vocab_size)
    model = replace(recipe.model.unpin(*derived), depth=depth, context=context)
    return replace(recipe, tokenizer=tokenizer, model=model)
