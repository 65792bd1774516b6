"""Every role has a rule, and parameters get the role of their name and shape."""

import pytest

from fledgling.config import OptimizerConfig
from fledgling.optim.roles import ROLES, assign_role, assign_rules


def test_every_role_has_a_rule_with_its_learning_rate():
    rates = {"matrix_lr": 1.0, "embedding_lr": 2.0, "head_lr": 3.0, "scalar_lr": 4.0, "adapter_lr": 5.0}
    config = OptimizerConfig(matrix_optimizer="normuon", **rates)
    rules = assign_rules(config)
    assert set(rules) == set(ROLES)
    assert {role: (rule.name, rule.lr) for role, rule in rules.items()} == {
        "matrix": ("normuon", 1.0),
        "embedding": ("adamw", 2.0),
        "head": ("adamw", 3.0),
        "scalar": ("adamw", 4.0),
        "adapter": ("adamw", 5.0),
    }


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("blocks.0.mlp.fc1.weight", (4, 4), "matrix"),
        ("head.weight", (4, 4), "head"),
        ("critic.weight", (1, 4), "head"),
        ("embedding.weight", (4, 4), "embedding"),
        ("blocks.0.attention.value_embedding.weight", (4, 4), "embedding"),
        ("blocks.0.scale", (4,), "scalar"),
        ("blocks.0.attention.gate.weight", (2, 32), "scalar"),
        ("blocks.0.attention.value_embedding.gate.weight", (2, 32), "scalar"),
        ("smear.gate.weight", (1, 32), "scalar"),
        ("blocks.0.mlp.gate_proj.weight", (4, 4), "matrix"),
        ("positions.weight", (4, 4), "scalar"),
    ],
)
def test_roles_follow_names_and_shapes(name, shape, role):
    assert assign_role(name, shape) == role
