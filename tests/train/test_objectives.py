"""Each objective is its paper's formula, in numbers and in gradient; the setting of each has its effect."""

import math

import numpy as np
import pytest
import torch

from fledgling.config import DPOConfig
from fledgling.train.objectives import (
    OBJECTIVES,
    Answers,
    ipo_loss,
    kto_loss,
    log_odds,
    orpo_loss,
    preference_loss,
    simpo_loss,
)

MARGINS = torch.tensor([-3.0, -0.5, 0.0, 0.2, 4.0], dtype=torch.float64)


def softplus(x):
    return np.logaddexp(0, x)


def answers(logprob, reference, tokens):
    values = (torch.tensor(v, dtype=torch.float64) for v in (logprob, reference, tokens, [1.0] * len(tokens)))
    return Answers(*values)


CHOSEN, REJECTED = answers([-3.0, -8.0], [-4.0, -7.0], [3.0, 4.0]), answers([-6.0, -2.0], [-5.0, -3.0], [2.0, 4.0])
MARGIN = np.array([1 - -1, -1 - 1])  # of gains
MEANS = np.array([-1.0, -2.0]), np.array([-3.0, -0.5])


def odds(mean):
    return np.exp(mean) / (1 - np.exp(mean))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dpo", softplus(-0.2 * MARGIN)),
        ("ipo", (MARGIN - 1 / 0.4) ** 2),
        ("simpo", softplus(-(0.2 * (MEANS[0] - MEANS[1]) - 0.7))),
        ("orpo", -MEANS[0] + 0.2 * softplus(-np.log(odds(MEANS[0]) / odds(MEANS[1])))),
    ],
)
def test_the_loss_of_a_pair_is_the_papers(name, expected):
    objective = OBJECTIVES[name]
    assert objective.pair_loss is not None
    loss = objective.pair_loss(CHOSEN, REJECTED, DPOConfig(objective=name, target_margin=0.7), 0.2)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-12)


def test_ktos_loss_is_the_papers():
    desirable = torch.tensor([True, False, True, False, True])
    loss = kto_loss(MARGINS, desirable, 0.3, 0.5, 1.5, 0.7).numpy()
    value = [
        1.5 / (1 + math.exp(-0.5 * (g - 0.3))) if d else 0.7 / (1 + math.exp(-0.5 * (0.3 - g)))
        for g, d in zip(MARGINS.tolist(), desirable.tolist(), strict=True)
    ]
    np.testing.assert_allclose(
        loss, [(1.5 if d else 0.7) - v for d, v in zip(desirable, value, strict=True)], rtol=1e-6
    )


@pytest.mark.parametrize(
    "loss",
    [
        lambda m: preference_loss(m, 0.3),
        lambda m: ipo_loss(m, 0.3),
        lambda m: simpo_loss(m, 2.0, 0.5),
        lambda m: orpo_loss(m - 5, -m - 5, 0.1),
        lambda m: kto_loss(m, m > 0.1, 0.1, 0.3, 1.0, 2.0),
    ],
)
def test_the_gradient_is_that_of_the_formula(loss):
    values = MARGINS.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (values,))


def test_odds_of_a_certain_answer_are_finite_and_a_better_answer_costs_less():
    for mean in (-1e-12, 0.0, -50.0):
        assert torch.isfinite(log_odds(torch.tensor(mean)))
    for name in ("dpo", "simpo", "orpo"):
        pair_loss = OBJECTIVES[name].pair_loss
        assert pair_loss is not None
        better = answers([-2.0, -7.0], [-4.0, -7.0], [3.0, 4.0])
        config = DPOConfig(objective=name)
        assert (pair_loss(better, REJECTED, config, 0.2) < pair_loss(CHOSEN, REJECTED, config, 0.2)).all()


def test_the_recipe_knows_every_objective_and_which_have_a_reference():
    choices = DPOConfig.__dataclass_fields__["objective"].metadata["choices"]
    assert set(choices) == set(OBJECTIVES)
    for name, objective in OBJECTIVES.items():
        uses = DPOConfig(objective=name).uses_reference
        if objective.pair_loss is None:
            assert uses == (name == "kto")
            continue
        other = Answers(CHOSEN.logprob, CHOSEN.reference + 1, CHOSEN.tokens, CHOSEN.weight)
        losses = [objective.pair_loss(c, REJECTED, DPOConfig(objective=name), 0.2) for c in (CHOSEN, other)]
        assert losses[0].equal(losses[1]) != uses
