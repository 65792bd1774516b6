"""Evaluations during training: on two ranks the lines of one, whoever answered."""

from dataclasses import replace
from pathlib import Path

import pytest

from fledgling.config import Recipe
from fledgling.evals import chat, likelihood
from fledgling.infer.engine import Engine
from fledgling.record import read_jsonl
from fledgling.runtime import device
from fledgling.train import run
from tests.made_up_core import write_core_bundle
from tests.ranks import on_ranks, one_thread
from tests.tiny import tiny

STAGES = ("pretrain", "sft", "rl")
COUNTED = ("evals", "samples")


def trained(recipe: Recipe, out: str) -> dict[str, int]:
    """Run all stages; returns how many prompts were answered in writing, and rows scored, on this rank."""
    device.measure_peak_flops = lambda device, dtype: 1e9  # it takes longer than these stages
    chat.GROUP_SIZE, likelihood.BATCH_TOKENS = {"cpu": 3}, {"cpu": 256}  # several groups and batches to share
    counts = {"written": 0, "read": 0}
    generate, read = Engine.generate, Engine.forward

    def counted(self, prompts, *rest, **more):
        counts["written"] += len(prompts)
        return generate(self, prompts, *rest, **more)

    def counted_read(self, tokens, *rest, **more):
        counts["read"] += len(tokens)
        return read(self, tokens, *rest, **more)

    Engine.generate, Engine.forward = counted, counted_read
    try:
        for stage in STAGES:
            assert run.run_stage(replace(recipe, run=replace(recipe.run, out=out)), stage, quiet=True)
    finally:
        Engine.generate, Engine.forward = generate, read
    return counts


@pytest.fixture
def alone(monkeypatch):
    for module, name in ((device, "measure_peak_flops"), (chat, "GROUP_SIZE"), (likelihood, "BATCH_TOKENS")):
        monkeypatch.setattr(module, name, getattr(module, name))  # undone afterwards, here


def test_two_ranks_write_the_lines_of_one_and_share_the_work(tmp_path, alone):
    root = write_core_bundle(tmp_path / "data")
    asked = {"stages": '["pretrain", "sft", "rl"]', "run.data_dir": f'"{root}"'}
    asked |= {"pretrain.core_every": 2, "pretrain.core_max_per_task": 3, "sft.eval_every": 2, "rl.eval_every": 2}
    recipe = tiny(tmp_path, **asked)
    with one_thread():
        whole = trained(recipe, str(tmp_path / "one"))
    ranks = on_ranks(2, trained, recipe, str(tmp_path / "two"))
    for stage in STAGES:
        for name in COUNTED:
            lines = [read_jsonl(Path(tmp_path) / out / stage / f"{name}.jsonl") for out in ("one", "two")]
            assert lines[0] and lines[0] == lines[1], f"{stage}: {name}"
    names = {line["name"] for line in read_jsonl(tmp_path / "two" / "pretrain" / "evals.jsonl")}
    assert {"bits_per_byte", "core", "arithmetic", "spelling_unseen"} <= names
    assert sum(rank["read"] for rank in ranks) == whole["read"] > 20
    assert all(rank["read"] > 0.2 * whole["read"] for rank in ranks), "both score"
    assert all(rank["written"] < 0.9 * whole["written"] for rank in ranks), "no rank answers everything"
