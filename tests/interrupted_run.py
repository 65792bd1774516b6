"""A run that is stopped in its fourth step and resumed, next to the same run that is not."""

import shutil
from pathlib import Path

import pytest
import torch

from fledgling.record.checkpoint import Checkpoint, find_latest_checkpoint, load_checkpoint
from fledgling.train import loop, run
from tests.all_stages import make_all_stages_recipe


def check_that_halves_equal_the_whole(folder: Path, options: dict[str, str]) -> Checkpoint:
    """Pretrains in `folder`/whole, and in `folder`/halves with a stop; returns the one checkpoint that both have."""
    options = {**options, "stages": '["pretrain"]'}
    recipes = [
        make_all_stages_recipe(folder, **options, **{"run.out": f'"{folder / name}"'}) for name in ("whole", "halves")
    ]
    run.run_stage(recipes[0], "pretrain", quiet=True)
    for prepared in ("tokenizer", "data"):
        shutil.copytree(folder / "whole" / prepared, folder / "halves" / prepared)
    done, update = [], loop.queue_step

    def stopping(*arguments):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(True)
        return update(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "queue_step", stopping)
        run.run_stage(recipes[1], "pretrain", quiet=True)
    run.run_stage(recipes[1], "pretrain", quiet=True)
    one, two = (
        load_checkpoint(find_latest_checkpoint(folder / name / "pretrain/checkpoints")) for name in ("whole", "halves")
    )
    for group in ("model", "optimizer"):
        assert one.tensors[group].keys() == two.tensors[group].keys()
        assert all(torch.equal(tensor, two.tensors[group][name]) for name, tensor in one.tensors[group].items())
    return one
