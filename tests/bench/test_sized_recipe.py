"""Settings of a benchmark of one model are followed, or rejected by name."""

import pytest

from fledgling.bench.sized_recipe import load_sized_recipe
from fledgling.bench.train import TABLES
from fledgling.config import UserError


def test_width_and_heads_follow_the_depth_unless_they_are_set():
    model = load_sized_recipe([], TABLES, 6, 64, 32).resolve_model()
    assert (model.depth, model.width, model.context, model.vocab_size) == (6, 384, 32, 64)
    model = load_sized_recipe(["model.width=128", "model.heads=4"], TABLES, 6, 64, 32).resolve_model()
    assert (model.depth, model.width, model.heads) == (6, 128, 4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.depth=9", "--set model.depth: this benchmark has an option for it, --depth"),
        ("model.context=9", "this benchmark has an option for it, --context"),
        ("tokenizer.vocab_size=9", "this benchmark has an option for it, --vocab-size"),
        ("run.init_from=x", "--set run.init_from: this benchmark's weights are random; leave it out"),
        ("adapter.init_from=x", "this benchmark's weights are random"),
        ("sft.steps=9", "--set sft.steps: expected a setting that this benchmark reads, of model, optimizer, run"),
        ("tokenizer.max_digits=2", "--set tokenizer.max_digits: expected a setting that this benchmark reads"),
        ("distill.top_k=9", "--set distill.top_k: expected a setting that this benchmark reads"),
    ],
)
def test_what_would_change_nothing_is_rejected(override, message):
    with pytest.raises(UserError, match=message):
        load_sized_recipe([override], TABLES, 6, 64, 32)
