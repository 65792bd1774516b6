"""Everything that RL computes is of the policy that acts, softmax(logits / rl.temperature), for every sampled token.

A group whose rewards are all equal has no advantage; the KL penalty and the entropy bonus hold for its tokens too. The
formulas are computed here from plain logits.
"""

from dataclasses import replace

import pytest
import torch

from fledgling.config import ModelConfig
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.infer.engine import Engine
from fledgling.model.transformer import Transformer
from fledgling.runtime.world import World
from fledgling.train.critic import attach_critic
from fledgling.train.rl.rollout_stream import RolloutStream
from tests.ranks import one_thread
from tests.train.rl.small_problems import BANDIT, Problem, settings, tokenizer

SILENT = Problem("silent", ("Choose.", "Again."), lambda prompt, answer: 1.0, lambda _: ("a",), 3)
TEMPERATURES = (0.5, 1.0, 2.0)


@pytest.fixture(autouse=True)
def thread():
    with one_thread():
        yield


def policy(seed: int) -> Transformer:
    model = Transformer(ModelConfig(tokenizer().vocab_size, 1, 32, 2, 2, 32, logit_softcap=5.0, logit_shift=2.0))
    model.initialize(seed)
    torch.nn.init.normal_(model.head.weight, std=0.3, generator=torch.Generator().manual_seed(seed))
    return model


def make_stream(problem: Problem, algorithm: str = "grpo", **others: object) -> RolloutStream:
    base = {"entropy_weight": 0.0, "prompts_per_round": 2, "group_size": 4, "advantage_normalization": "centered"}
    config = settings(problem, algorithm, **{**base, **others})
    model, reference = policy(1), policy(2).requires_grad_(False)
    if config.uses_critic:
        attach_critic(model)
    return RolloutStream(
        Engine(model, tokenizer()),
        config,
        {problem.name: problem},
        0,
        8,
        World.start("cpu"),
        reference=reference if config.kl_weight else None,
    )


def tempered(model: Transformer, batch: Batch, temperature: float) -> torch.Tensor:
    """log softmax(logits / temperature), (B, T, V)."""
    return (model.compute_logits(model(batch.tokens, batch.document_ids)) / temperature).log_softmax(-1)


def chosen(logprobs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The log-probabilities of the targets, in a row."""
    mask = batch.targets != IGNORE_INDEX
    return logprobs[mask].gather(1, batch.targets[mask][:, None])[:, 0]


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_log_probabilities_divergence_and_entropy_are_of_the_tempered_policy(temperature, algorithm):
    stream = make_stream(BANDIT, algorithm, temperature=temperature, kl_weight=0.3, max_new_tokens=3)
    (batch,) = stream.next()
    model, reference = stream.engine.source, stream.reference
    mask = batch.targets != IGNORE_INDEX
    with torch.no_grad():
        acting = chosen(tempered(model, batch, temperature), batch)
        first = chosen(tempered(reference, batch, temperature), batch)
    torch.testing.assert_close(batch.old_logprobs[mask], acting, rtol=0, atol=1e-4)
    torch.testing.assert_close(batch.reference_logprobs[mask], first, rtol=0, atol=1e-4)
    divergence = ((first - acting).exp() - (first - acting) - 1).mean()
    assert stream.round_metrics["kl"] == pytest.approx(float(divergence), rel=1e-3)
    assert stream.round_metrics["entropy"] == pytest.approx(-float(acting.mean()), rel=1e-3)
    stream.loss(model, batch)
    assert stream.metrics()["kl_after"] == pytest.approx(float(divergence), rel=1e-3)


def gradients(model: Transformer, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


def are_close(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert any(gradient.norm() > 1e-3 for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=2e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_entropy_bonus_has_the_gradient_of_the_tempered_entropy(temperature):
    stream = make_stream(SILENT, temperature=temperature, entropy_weight=0.2, drop_uniform_groups=False)
    (batch,) = stream.next()
    model = stream.engine.source
    logprobs = tempered(model, batch, temperature)[batch.targets != IGNORE_INDEX]
    bonus = 0.2 * (logprobs.exp() * logprobs).sum()  # minus the entropy
    are_close(gradients(model, stream.loss(model, batch)), gradients(model, bonus))


VARIANTS = [
    {"algorithm": "grpo", "advantage_normalization": "centered"},
    {"algorithm": "grpo", "advantage_normalization": "zscore", "loss_normalization": "sequence"},
    {"algorithm": "grpo", "advantage_normalization": "leave_one_out", "drop_uniform_groups": False},
    {"algorithm": "grpo", "kl_target": 0.05},
    {"algorithm": "ppo", "gae_lambda": 1.0, "value_weight": 0.0},
    {"algorithm": "ppo", "gae_lambda": 1.0, "value_weight": 0.0, "loss_normalization": "sequence"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))
def test_the_kl_penalty_holds_for_groups_of_equal_rewards(variant):
    """Their loss has no other term, so its gradient is that of beta times k3, with the weight of every token."""
    stream = make_stream(SILENT, **{"kl_weight": 0.3, "temperature": 0.7, **variant})
    (batch,) = stream.next()
    model = stream.engine.source
    mask = batch.targets != IGNORE_INDEX
    assert int(mask.sum()) >= 8, "two groups of four answers"
    assert not batch.advantages.any()
    difference = batch.reference_logprobs[mask] - chosen(tempered(model, batch, 0.7), batch)
    weights = batch.loss_weights[mask]
    torch.testing.assert_close(weights.sum(), torch.tensor(float(mask.sum())))
    penalty = stream.kl_weight * ((difference.exp() - difference - 1) * weights).sum()
    loss = stream.loss(model, batch)
    torch.testing.assert_close(loss, penalty, rtol=1e-3, atol=1e-4)
    are_close(gradients(model, loss), gradients(model, penalty))


def test_a_uniform_group_has_its_tokens_in_the_denominator_next_to_a_group_with_signal():
    def count(**others: object) -> int:
        half = replace(SILENT, reward=lambda prompt, answer: float(prompt == "Again." and answer < "P"))
        return sum(batch.target_count for batch in make_stream(half, **others).next())

    assert count(kl_weight=0.1) == count(entropy_weight=0.1) == count(drop_uniform_groups=False) > count()


def test_a_round_without_a_token_to_learn_from_reports_no_divergence_and_no_clipping():
    stream = make_stream(SILENT)
    (batch,) = stream.next()
    assert batch.target_count == 0
    stream.loss(stream.engine.source, batch)
    assert not {"kl", "clip_fraction", "kl_after"} & set(stream.metrics())
