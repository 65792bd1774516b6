"""One optimizer for any number of ranks: beside torch's own, from rank count to rank count, when a gradient breaks.

The parameters are as awkward as can be: fewer rows and fewer matrices than ranks, small tensors, a number.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fledgling.config import OptimizerConfig, UserError
from fledgling.optim.optimizer import Optimizer, is_deterministic
from fledgling.optim.partition import partition_parameters
from fledgling.runtime.world import World, pairwise_sum
from tests.ranks import on_ranks, one_thread

SHAPES = {
    "embedding.weight": (5, 8),
    "embedding.few": (3, 8),
    "a.weight": (6, 4),
    "a.scale": (8,),
    "b.weight": (6, 4),
    "c.weight": (6, 4),
    "d.weight": (4, 12),
    "e.weight": (6, 4),
    "f.weight": (6, 4),
    "temperature": (),
    "head.weight": (7, 8),
}
TABLE = {"matrix_lr": 0.02, "embedding_lr": 0.01, "head_lr": 0.004, "scalar_lr": 0.03}


class Odd(nn.Module):
    """Parameters of SHAPES, under these names."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            *path, last = name.split(".")
            home = self
            for part in path:
                if not hasattr(home, part):
                    home.add_module(part, nn.Module())
                home = getattr(home, part)
            home.register_parameter(last, nn.Parameter(torch.randn(shape, generator=draw)))


def gradients(step, micro):
    draw = torch.Generator().manual_seed(1000 * step + micro)
    return {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


def run(model, optimizer, world, steps, micros=5):
    """Steps of `micros` micro-batches, dealt in turn; the loss gives each parameter its made-up gradient."""
    norms = []
    for step in steps:
        optimizer.begin(-(-micros // world.size))
        for micro in range(world.rank, micros, world.size):
            given = gradients(step, micro)
            sum((p * given[name]).sum() for name, p in model.named_parameters()).backward()
            optimizer.accumulate()
        norms.append(optimizer.step())
    return norms


def made(zero=1, exact="on", **more):
    world, model = World.start("cpu"), Odd()
    return world, model, Optimizer(model, OptimizerConfig(**TABLE, zero_stage=zero, deterministic=exact, **more), world)


def trained(steps, saved=None, zero=1, exact="on"):
    world, model, optimizer = made(zero, exact)
    if saved:
        model.load_state_dict(saved["weights"])
        optimizer.load_full_state_dict(saved["state"])
    norms = run(model, optimizer, world, steps)
    return {"weights": model.state_dict(), "state": optimizer.full_state_dict(), "norms": norms}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_it_is_torch_adamw_and_torch_muon():
    world, model, optimizer = made(exact="off")
    optimizer.dtype = torch.bfloat16  # as torch's Muon computes
    reference = Odd()
    named = dict(reference.named_parameters())
    matrices = [name for name in SHAPES if optimizer.partition.roles[name] == "matrix"]
    table = optimizer.table
    theirs = [torch.optim.Muon([named[n] for n in matrices], lr=0.02, momentum=0.95, weight_decay=0.0)]
    rates = {"embedding": 0.01, "head": 0.004, "scalar": 0.03}
    theirs += [
        torch.optim.AdamW([named[n]], rates[role], betas=table.adam_betas, eps=table.adam_eps, weight_decay=0.0)
        for n, role in optimizer.partition.roles.items()
        if role != "matrix"
    ]
    run(model, optimizer, world, range(4))
    for step in range(4):
        for name, parameter in named.items():
            parameter.grad = sum(gradients(step, micro)[name] for micro in range(5))
        for one in theirs:
            one.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, named[name], rtol=2e-5, atol=2e-5, msg=name)


def _everything(folder):
    """What the ranks of one spawn do: train at every stage of zero, save, break a gradient."""
    whole = {zero: trained(range(4), zero=zero) for zero in (0, 1, 2)}
    fast = {zero: trained(range(4), zero=zero, exact="off") for zero in (0, 1, 2)}
    half = trained(range(2), zero=2)
    torch.save(half, f"{folder}/half-{World.start('cpu').rank}.pt")
    broken = {}
    for zero in (0, 1, 2):
        world, model, optimizer = made(zero)
        run(model, optimizer, world, range(2))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer.begin_step(1)
        given = gradients(9, world.rank)
        if world.rank == world.size - 1:
            given["c.weight"][2, 1] = float("nan")
        sum((p * given[name]).sum() for name, p in model.named_parameters()).backward()
        optimizer.accumulate()
        norm = optimizer.step()
        still = same(model.state_dict(), before)
        count = optimizer.update_count
        run(model, optimizer, world, range(2, 4))
        broken[zero] = (norm, still, count, model.state_dict())
    return whole, fast, half, broken


def _resumed(saved):
    return trained(range(2, 4), saved=saved, zero=1)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_agree_resume_elsewhere_and_survive_a_broken_gradient(size, tmp_path):
    with one_thread():
        alone = trained(range(4))
        ranks = on_ranks(size, _everything, str(tmp_path))
        for rank, (whole, fast, half, broken) in enumerate(ranks):
            for zero in (0, 1, 2):
                assert same(whole[zero]["weights"], alone["weights"]), f"rank {rank}, zero {zero}"
                assert whole[zero]["norms"] == alone["norms"]
                for name, value in alone["weights"].items():
                    torch.testing.assert_close(fast[zero]["weights"][name], value, rtol=1e-5, atol=1e-6)
                norm, still, count, after = broken[zero]
                assert norm != norm and still and count == 2, f"rank {rank}, zero {zero}: a nan moved something"
                assert same(after, alone["weights"]), "what came after the broken step is not what comes without it"
            assert bool(half["state"]) == (rank == 0)
        assert all(same(ranks[0][0][zero]["state"], alone["state"]) for zero in (0, 1, 2))
        saved = {"weights": ranks[0][2]["weights"], "state": ranks[0][2]["state"]}
        assert same(_resumed(saved)["weights"], alone["weights"])
        if size == 4:
            for again in on_ranks(2, _resumed, saved):
                assert same(again["weights"], alone["weights"])


def test_state_that_does_not_fit_is_named():
    saved = trained(range(1))["state"]
    world, _, optimizer = made()
    with pytest.raises(UserError, match=r"a\.weight\.velocity: expected shape"):
        optimizer.load_full_state_dict({**saved, "a.weight.velocity": torch.zeros(2, 2)})
    del saved["head.weight.mean"]
    with pytest.raises(UserError, match=r"head\.weight\.mean.*found nothing"):
        optimizer.load_full_state_dict(saved)
    assert world.size == 1


def test_exact_is_for_powers_of_two():
    cpu = torch.device("cpu")
    assert is_deterministic(OptimizerConfig(), World(0, 4, 0, cpu)) and not is_deterministic(
        OptimizerConfig(), World(0, 3, 0, cpu)
    )
    assert not is_deterministic(OptimizerConfig(), World(0, 4, 0, torch.device("cuda")))
    assert not is_deterministic(OptimizerConfig(deterministic="off"), World(0, 1, 0, cpu))
    with pytest.raises(UserError, match="3 ranks"):
        is_deterministic(OptimizerConfig(deterministic="on"), World(0, 3, 0, cpu))


def test_a_tree_of_trees_is_the_same_tree():
    draw = torch.Generator().manual_seed(0)
    leaves = [torch.randn(50, generator=draw) * 10.0**i for i in range(8)]
    whole = pairwise_sum([leaf.clone() for leaf in leaves])
    for size in (2, 4):
        parts = [pairwise_sum([leaf.clone() for leaf in leaves[i : i + size]]) for i in range(0, 8, size)]
        assert torch.equal(pairwise_sum(parts), whole)
    assert not torch.equal(whole, sum(leaves)), "numbers so different must tell the order of addition"


shapes = st.lists(st.sampled_from([(6, 4), (4, 12), (8, 8)]), min_size=0, max_size=7)


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(1, 9), st.integers(1, 9), st.sampled_from([0, 1, 2]))
def test_everything_is_owned_exactly_once(matrices, rows, size, zero):
    parameters = {"embedding.weight": (rows, 3), "scale": (5,), "head.weight": (2 * rows, 3)}
    parameters |= {f"{i}.weight": shape for i, shape in enumerate(matrices)}
    layout = partition_parameters(parameters, size, zero)
    assert sorted(name for bucket in layout.buckets for name in bucket.names) == sorted(parameters)
    for bucket in layout.buckets:
        assert bucket.chunk_values * size >= bucket.num_values
        for name in bucket.names:
            owners = [layout.owned_rows(bucket, name, rank) for rank in range(size)]
            if bucket.replicated:
                assert all(len(rows) == parameters[name][0] for rows in owners)
            else:
                assert sorted(row for rows in owners for row in rows) == list(range(parameters[name][0]))
    state = [layout.estimate_memory(rank).optimizer_state for rank in range(size)]
    if size > 1 and zero:
        assert sum(state) <= layout.estimate_memory(0).parameters * 2 + 10 * size  # the small are replicated
