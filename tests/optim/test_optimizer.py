"""The optimizer on any number of ranks: against PyTorch's own, from rank count to rank count, with a broken gradient.

The parameters include fewer rows and fewer matrices than ranks, small tensors, and a 0-d tensor.
"""

import math

import pytest
import torch
from torch import nn

from fledgling.config import OptimizerConfig, UserError
from fledgling.optim import optimizer as optimizer_module
from fledgling.optim.optimizer import Optimizer, is_deterministic
from fledgling.runtime.world import World
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
LEARNING_RATES = {"matrix_lr": 0.02, "embedding_lr": 0.01, "head_lr": 0.004, "scalar_lr": 0.03}


class UnevenModel(nn.Module):
    """Parameters of SHAPES, under these names."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            *path, last = name.split(".")
            parent = self
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = getattr(parent, part)
            parent.register_parameter(last, nn.Parameter(torch.randn(shape, generator=generator)))


def make_gradients(step, micro_batch):
    generator = torch.Generator().manual_seed(1000 * step + micro_batch)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def backward(model, gradients):
    """Backward pass of a loss that gives each parameter its gradient."""
    sum((p * gradients[name]).sum() for name, p in model.named_parameters()).backward()


def run_steps(model, optimizer, world, steps, micro_batches=5, late=False):
    """Makes steps of `micro_batches` micro-batches, assigned to ranks in turn; returns the norms.

    late: whether to update is decided where the parameters are, as on CUDA.
    """
    norms = []
    for step in steps:
        optimizer.begin_step(-(-micro_batches // world.size))
        for micro_batch in range(world.rank, micro_batches, world.size):
            backward(model, make_gradients(step, micro_batch))
            optimizer.accumulate()
        norms.append(float(optimizer.queue_step(lambda: torch.ones(1), True)[0]) if late else optimizer.step())
    return norms


def make_optimizer(zero_stage=1, deterministic="on", **fields):
    world, model = World.start("cpu"), UnevenModel()
    config = OptimizerConfig(**LEARNING_RATES, zero_stage=zero_stage, deterministic=deterministic, **fields)
    return world, model, Optimizer(model, config, world)


def train(steps, saved=None, zero_stage=1, deterministic="on"):
    world, model, optimizer = make_optimizer(zero_stage, deterministic)
    if saved:
        model.load_state_dict(saved["weights"])
        optimizer.load_full_state_dict(saved["state"])
    norms = run_steps(model, optimizer, world, steps)
    return {"weights": model.state_dict(), "state": optimizer.full_state_dict(), "norms": norms}


def are_equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_it_equals_torch_adamw_and_torch_muon():
    world, model, optimizer = make_optimizer(deterministic="off")
    optimizer.dtype = torch.bfloat16  # as torch's Muon computes
    reference = UnevenModel()
    named = dict(reference.named_parameters())
    matrices = [name for name in SHAPES if optimizer.partition.roles[name] == "matrix"]
    config = optimizer.config
    references = [torch.optim.Muon([named[n] for n in matrices], lr=0.02, momentum=0.95, weight_decay=0.0)]
    learning_rates = {"embedding": 0.01, "head": 0.004, "scalar": 0.03}
    references += [
        torch.optim.AdamW(
            [named[n]], learning_rates[role], betas=config.adam_betas, eps=config.adam_eps, weight_decay=0.0
        )
        for n, role in optimizer.partition.roles.items()
        if role != "matrix"
    ]
    run_steps(model, optimizer, world, range(4))
    for step in range(4):
        for name, parameter in named.items():
            parameter.grad = sum(make_gradients(step, micro_batch)[name] for micro_batch in range(5))
        for torch_optimizer in references:
            torch_optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, named[name], rtol=2e-5, atol=2e-5, msg=name)


@pytest.mark.parametrize("matrix_optimizer", ["muon", "normuon", "adamw"])
@pytest.mark.parametrize("cautious", [False, True])
def test_weight_decay_is_applied_to_matrices_only(matrix_optimizer, cautious):
    def run(weight_decay):
        world, model, optimizer = make_optimizer(
            matrix_optimizer=matrix_optimizer, weight_decay=weight_decay, cautious_weight_decay=cautious
        )
        run_steps(model, optimizer, world, range(2))
        return model.state_dict(), optimizer.partition.roles

    (plain, roles), (decayed, _) = run(0.0), run(0.5)
    changed = {name for name in SHAPES if not torch.equal(plain[name], decayed[name])}
    assert changed == {name for name, role in roles.items() if role == "matrix"}


def test_weight_decay_shrinks_a_matrix_by_learning_rate_times_decay():
    def run_zero_gradient(weight_decay):
        _, model, optimizer = make_optimizer(weight_decay=weight_decay)
        optimizer.begin_step(1)
        backward(model, {name: torch.zeros(shape) for name, shape in SHAPES.items()})
        optimizer.accumulate()
        optimizer.step()
        return model.state_dict()

    start, decayed = UnevenModel().state_dict(), run_zero_gradient(0.5)
    for name in ("a.weight", "d.weight"):
        torch.testing.assert_close(decayed[name], start[name] * (1 - 0.02 * 0.5))
    for name in ("embedding.weight", "head.weight", "a.scale", "temperature"):
        assert torch.equal(decayed[name], start[name])


@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("rule", ["muon", "normuon", "adamw"])
def test_a_step_decided_on_the_device_has_the_same_bits_and_changes_nothing_where_it_is_not_finite(rule, cautious):
    fields = {"matrix_optimizer": rule, "weight_decay": 0.1, "cautious_weight_decay": cautious}
    outcomes = []
    for late in (False, True):
        world, model, optimizer = make_optimizer(**fields)
        norms = run_steps(model, optimizer, world, range(2), late=late)
        if late:
            for broken in ("gradient", "loss", "targets"):
                before = {**model.state_dict(), **optimizer.full_state_dict()}
                before = {name: value.clone() for name, value in before.items()}
                optimizer.begin_step(1)
                gradients = make_gradients(9, 0)
                if broken == "gradient":
                    gradients["c.weight"][2, 1] = float("nan")
                backward(model, gradients)
                optimizer.accumulate()
                loss = torch.tensor([math.inf if broken == "loss" else 1.0])
                optimizer.queue_step(lambda loss=loss: loss, broken != "targets")
                assert are_equal(before, {**model.state_dict(), **optimizer.full_state_dict()}), broken
        norms += run_steps(model, optimizer, world, range(2, 4), late=late)
        outcomes.append((norms, model.state_dict(), optimizer.full_state_dict()))
    (norms, weights, state), (late_norms, late_weights, late_state) = outcomes
    assert norms == late_norms and are_equal(state, late_state) and state["count"] == 4
    if cautious:  # whose decay is another product
        torch.testing.assert_close(dict(weights), dict(late_weights))
    else:
        assert are_equal(weights, late_weights)


def test_learning_rates_are_multiplied_by_stage_and_schedule():
    start = UnevenModel().state_dict()

    def change(lr_multiplier, schedule_multiplier):
        world, model = World.start("cpu"), UnevenModel()
        optimizer = Optimizer(model, OptimizerConfig(**LEARNING_RATES), world, lr_multiplier)
        optimizer.set_schedule_multiplier(schedule_multiplier)
        run_steps(model, optimizer, world, range(1))
        return {name: value - start[name] for name, value in model.state_dict().items()}

    full, half = change(1.0, 1.0), change(2.0, 0.25)
    for name in SHAPES:
        torch.testing.assert_close(half[name], 0.5 * full[name], rtol=1e-3, atol=1e-6)


def _train_in_half(exact):
    """Weights of a rank after steps with products in bf16, and those that a checkpoint has; exact: sent in fp32."""
    world, model = World.start("cpu"), UnevenModel()
    optimizer = Optimizer(model, OptimizerConfig(**LEARNING_RATES), world, dtype=torch.bfloat16)
    with pytest.MonkeyPatch.context() as patch:
        if exact:
            patch.setattr(optimizer_module, "is_gathered_in_half", lambda *_: False)
        run_steps(model, optimizer, world, range(2))
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    return whole, whole | optimizer.gather_exact_parameters()


def _train_at_every_stage(folder):
    """What the ranks of one spawn do: train at every ZeRO stage, save, and break a gradient."""
    deterministic = {stage: train(range(4), zero_stage=stage) for stage in (0, 1, 2)}
    fast = {stage: train(range(4), zero_stage=stage, deterministic="off") for stage in (0, 1, 2)}
    half = train(range(2), zero_stage=2)
    torch.save(half, f"{folder}/half-{World.start('cpu').rank}.pt")
    broken = {}
    for stage in (0, 1, 2):
        world, model, optimizer = make_optimizer(stage)
        run_steps(model, optimizer, world, range(2))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer.begin_step(1)
        gradients = make_gradients(9, world.rank)
        if world.rank == world.size - 1:
            gradients["c.weight"][2, 1] = float("nan")
        backward(model, gradients)
        optimizer.accumulate()
        norm = optimizer.step()
        unchanged = are_equal(model.state_dict(), before)
        update_count = int(optimizer.updates)
        run_steps(model, optimizer, world, range(2, 4))
        broken[stage] = (norm, unchanged, update_count, model.state_dict())
    return deterministic, fast, half, broken, (_train_in_half(exact=False), _train_in_half(exact=True))


def _resume(saved):
    return train(range(2, 4), saved=saved, zero_stage=1)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_agree_resume_elsewhere_and_survive_a_broken_gradient(world_size, tmp_path):
    with one_thread():
        one_rank = train(range(4))
        ranks = on_ranks(world_size, _train_at_every_stage, str(tmp_path))
        for (sent, saved), (exact, _) in (rank[-1] for rank in ranks[:1]):  # the main rank, which saves
            assert are_equal(saved, exact) and not are_equal(sent, exact)
            assert are_equal(*({n: w.bfloat16() for n, w in weights.items()} for weights in (sent, exact)))
        for rank, (deterministic, fast, half, broken, _) in enumerate(ranks):
            for stage in (0, 1, 2):
                assert are_equal(deterministic[stage]["weights"], one_rank["weights"]), f"rank {rank}, stage {stage}"
                assert deterministic[stage]["norms"] == one_rank["norms"]
                for name, value in one_rank["weights"].items():
                    torch.testing.assert_close(fast[stage]["weights"][name], value, rtol=1e-5, atol=1e-6)
                norm, unchanged, update_count, after = broken[stage]
                assert math.isnan(norm) and unchanged and update_count == 2, f"rank {rank}, stage {stage}: nan updated"
                assert are_equal(after, one_rank["weights"]), "training after the broken step is not as without it"
            assert bool(half["state"]) == (rank == 0)
        assert all(are_equal(ranks[0][0][stage]["state"], one_rank["state"]) for stage in (0, 1, 2))
        saved = {"weights": ranks[0][2]["weights"], "state": ranks[0][2]["state"]}
        assert are_equal(_resume(saved)["weights"], one_rank["weights"])
        if world_size == 4:
            for resumed in on_ranks(2, _resume, saved):
                assert are_equal(resumed["weights"], one_rank["weights"])


def test_state_that_does_not_fit_is_named():
    saved = train(range(1))["state"]
    world, _, optimizer = make_optimizer()
    with pytest.raises(UserError, match=r"a\.weight\.momentum_buffer: expected shape"):
        optimizer.load_full_state_dict({**saved, "a.weight.momentum_buffer": torch.zeros(2, 2)})
    del saved["head.weight.exp_avg"]
    with pytest.raises(UserError, match=r"head\.weight\.exp_avg.*found nothing"):
        optimizer.load_full_state_dict(saved)
    assert world.size == 1


def test_deterministic_mode_needs_a_power_of_two():
    cpu = torch.device("cpu")
    assert is_deterministic(OptimizerConfig(), World(0, 4, 0, cpu))
    assert not is_deterministic(OptimizerConfig(), World(0, 3, 0, cpu))
    assert not is_deterministic(OptimizerConfig(), World(0, 4, 0, torch.device("cuda")))
    assert not is_deterministic(OptimizerConfig(deterministic="off"), World(0, 1, 0, cpu))
    with pytest.raises(UserError, match="3 ranks"):
        is_deterministic(OptimizerConfig(deterministic="on"), World(0, 3, 0, cpu))


@pytest.mark.parametrize(("threads", "deterministic", "padded"), [(2, "on", True), (1, "on", False), (2, "off", False)])
def test_matrices_are_padded_to_pairs_where_threads_could_change_their_bits(
    threads, deterministic, padded, monkeypatch
):
    """Which processor's kernels round a lone matrix differently on two threads is not known here: the choice is."""
    calls = []

    def record_call(parameters, gradient, momentum_buffer, lr, settings, **options):
        calls.append(settings.pad_to_pair)

    monkeypatch.setattr(optimizer_module, "muon_", record_call)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        world, model, optimizer = make_optimizer(deterministic=deterministic)
        run_steps(model, optimizer, world, range(1), micro_batches=1)
    finally:
        torch.set_num_threads(before)
    assert calls and set(calls) == {padded}
