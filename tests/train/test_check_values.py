"""What the builder of a stage would reject is an error before the machine is measured or anything is written."""

from pathlib import Path

import pytest

from fledgling.config import UserError, load_recipe
from fledgling.train import run
from tests.fast_run import write_recipe

REJECTED = [
    ("pretrain", "pretrain.batch_tokens=97", "expected whole rows of 64"),
    ("pretrain", "pretrain.batch_tokens=128 pretrain.examples_per_step=2", "leave one of them out"),
    ("pretrain", "pretrain.micro_batch_size=3 run.loggers=['tensorbord']", "tensorbord"),
    ("pretrain", "pretrain.steps=none pretrain.num_epochs=1 pretrain.mixture={identity=1.0}", "has no end|have no end"),
    ("pretrain", "adapter.method=lora adapter.stages=['pretrain']", "no weights to adapt"),
]


@pytest.mark.parametrize(("stage", "settings", "problem"), REJECTED)
def test_what_a_builder_rejects_fails_before_anything_is_written(stage, settings, problem, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "start_run", lambda *_: pytest.fail("measured"))
    recipe = load_recipe(write_recipe(tmp_path), settings.split())
    with pytest.raises(UserError, match=problem) as error:
        run.run_stage(recipe, stage, quiet=True)
    assert "\n" not in str(error.value)
    assert not list(Path(recipe.run.out).glob("**/metrics.jsonl")), "no stage has begun"
