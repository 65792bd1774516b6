"""Evaluations during training: two ranks record the same lines as one."""

from dataclasses import replace
from pathlib import Path

import pytest

from fledgling.config import Recipe
from fledgling.evals import chat, likelihood
from fledgling.infer.engine import Engine
from fledgling.record import read_jsonl
from fledgling.runtime import device
from fledgling.train import run
from tests.all_stages import make_all_stages_recipe
from tests.made_up_core import write_core_bundle
from tests.ranks import on_ranks, one_thread

STAGES = ("pretrain", "sft", "rl")
COUNTED = ("evals", "samples")


def run_stages_counting(recipe: Recipe, out: str) -> dict[str, int]:
    """Runs all stages; returns the number of prompts answered and of rows scored on this rank."""
    device.measure_peak_flops = lambda device, dtype: 1e9  # it takes longer than these stages
    chat.GROUP_SIZE, likelihood.BATCH_TOKENS = {"cpu": 3}, {"cpu": 256}  # several groups and batches to share
    counts = {"generated": 0, "scored": 0}
    generate, forward = Engine.generate, Engine.forward

    def counting_generate(self, prompts, *rest, **more):
        counts["generated"] += len(prompts)
        return generate(self, prompts, *rest, **more)

    def counting_forward(self, tokens, *rest, **more):
        counts["scored"] += len(tokens)
        return forward(self, tokens, *rest, **more)

    Engine.generate, Engine.forward = counting_generate, counting_forward
    try:
        for stage in STAGES:
            assert run.run_stage(replace(recipe, run=replace(recipe.run, out=out)), stage, quiet=True)
    finally:
        Engine.generate, Engine.forward = generate, forward
    return counts


@pytest.fixture
def restored(monkeypatch):
    for module, name in ((device, "measure_peak_flops"), (chat, "GROUP_SIZE"), (likelihood, "BATCH_TOKENS")):
        monkeypatch.setattr(module, name, getattr(module, name))  # restores the original at the end


def test_two_ranks_record_the_lines_of_one_and_share_the_work(tmp_path, restored):
    root = write_core_bundle(tmp_path / "data")
    settings = {"stages": '["pretrain", "sft", "rl"]', "run.data_dir": f'"{root}"'}
    settings |= {"pretrain.core_every": 2, "pretrain.core_max_per_task": 3, "sft.eval_every": 2, "rl.eval_every": 2}
    recipe = make_all_stages_recipe(tmp_path, **settings)
    with one_thread():
        alone = run_stages_counting(recipe, str(tmp_path / "one"))
    ranks = on_ranks(2, run_stages_counting, recipe, str(tmp_path / "two"))
    for stage in STAGES:
        for name in COUNTED:
            lines = [read_jsonl(Path(tmp_path) / out / stage / f"{name}.jsonl") for out in ("one", "two")]
            assert lines[0] and lines[0] == lines[1], f"{stage}: {name}"
    names = {line["name"] for line in read_jsonl(tmp_path / "two" / "pretrain" / "evals.jsonl")}
    assert {"bits_per_byte", "core", "arithmetic", "spelling_test"} <= names
    assert sum(rank["scored"] for rank in ranks) == alone["scored"] > 20
    assert all(rank["scored"] > 0.2 * alone["scored"] for rank in ranks), "both score"
    assert all(rank["generated"] < 0.9 * alone["generated"] for rank in ranks), "no rank answers everything"
