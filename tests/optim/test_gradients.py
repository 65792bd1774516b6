"""Sums over micro-batches and ranks are one binary tree. `test_optimizer.py` tests the reduction on several ranks."""

import torch

from fledgling.optim.gradients import add_pairwise, sum_branches
from fledgling.runtime.world import pairwise_sum


def make_leaves() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(50, generator=generator) * 10.0**i for i in range(8)]


def test_a_tree_of_trees_is_the_same_tree():
    leaves = make_leaves()
    whole = pairwise_sum([leaf.clone() for leaf in leaves])
    for size in (2, 4):
        parts = [pairwise_sum([leaf.clone() for leaf in leaves[i : i + size]]) for i in range(0, 8, size)]
        assert torch.equal(pairwise_sum(parts), whole)
    assert not torch.equal(whole, sum(leaves)), "numbers so different must show the order of addition"


def test_adding_one_leaf_after_the_other_is_the_same_tree():
    leaves = make_leaves()
    for count in (1, 2, 4, 8):
        sums: list[torch.Tensor] = []
        for before, leaf in enumerate(leaves[:count]):
            add_pairwise(sums, leaf.clone(), before)
        assert torch.equal(sum_branches(sums), pairwise_sum([leaf.clone() for leaf in leaves[:count]]))
        assert sums == []
