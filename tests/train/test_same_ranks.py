"""Ranks that compute otherwise than rank 0 are rejected before the first step."""

from types import SimpleNamespace

import pytest
import torch

from fledgling.config import UserError, load_recipe
from fledgling.runtime.device import DeviceSetup
from fledgling.train import same_ranks
from fledgling.train.same_ranks import require_same_device, require_same_recipe

CASES = {
    "device": ("NVIDIA A100-SXM4-40GB", "device of rank 1 is NVIDIA A100-SXM4-40GB, of rank 0 NVIDIA H100 80GB HBM3"),
    "dtype": ("float16", "dtype of rank 1 is float16, of rank 0 bfloat16: set run.dtype"),
    "compiled": ("not compiled", "compiled of rank 1 is not compiled, of rank 0 compiled: install the compiler"),
    "torch": ("2.11.0", "torch of rank 1 is 2.11.0, of rank 0"),
}


@pytest.mark.parametrize("what", CASES)
def test_a_rank_that_computes_otherwise_is_named_in_one_line(what, monkeypatch):
    value, line = CASES[what]
    monkeypatch.setattr(same_ranks, "describe_gpu", lambda device: ("NVIDIA H100 80GB HBM3", 80 * 2**30))
    setup = DeviceSetup(torch.bfloat16, True, 0.0)

    def world(**other):
        return SimpleNamespace(device=torch.device("cuda"), all_gather_object=lambda own: [own, own | other])

    require_same_device(setup, world())
    with pytest.raises(UserError, match=line) as caught:
        require_same_device(setup, world(**{what: value}))
    assert "\n" not in str(caught.value)


def test_a_rank_with_another_recipe_or_work_is_named_in_one_line():
    recipe = load_recipe("quickstart")

    def world(other, work="pretrain"):
        return SimpleNamespace(all_gather_object=lambda own: [own, (other, work)])

    require_same_recipe(recipe, world(recipe), "pretrain")
    require_same_recipe(recipe, world(load_recipe("quickstart", ["run.threads=3", "run.data_dir=x"])), "pretrain")
    other = load_recipe("quickstart", ["model.depth=3", "seed=5"])
    line = r"seed is 5 on rank 1, \d+ on rank 0; model.depth is 3 on rank 1, \d on rank 0: start every rank with"
    with pytest.raises(UserError, match=line):
        require_same_recipe(recipe, world(other), "pretrain")
    with pytest.raises(UserError, match=r"rank 1 is to run sft, rank 0 pretrain: start every rank"):
        require_same_recipe(recipe, world(recipe, "sft"), "pretrain")
