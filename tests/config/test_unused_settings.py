"""Settings that another one switches off: a change of them takes no effect, and refuses no start."""

import pytest

from fledgling.config import load_recipe
from fledgling.config.changes import compare_recipes

EXAMPLES = [
    ("adapter.rank=4", (), "adapter.method=lora"),
    ("adapter.quantization=nf4", (), "adapter.method=lora"),
    ("optimizer.adapter_lr=0.5", (), "adapter.method=lora"),
    ("optimizer.equilibrate=true", ("optimizer.matrix_optimizer=adamw",), "optimizer.matrix_optimizer=normuon"),
    ("sft.mtp_decay_steps=3", (), "sft.mtp_targets=1"),
    ("distill.top_k=4", (), "distill.teacher=elsewhere"),
    ("dpo.target_margin=3", ("dpo.objective=orpo",), "dpo.objective=simpo"),
    ("dpo.desirable_weight=3", ("dpo.objective=simpo",), "dpo.objective=kto"),
    ("rl.gae_lambda=0.5", ("rl.algorithm=grpo",), "rl.algorithm=ppo"),
    ("rl.value_weight=9", ("rl.algorithm=cispo",), "rl.algorithm=ppo"),
    ("rl.length_penalty_free_tokens=3", (), "rl.length_penalty=0.1"),
]


@pytest.mark.parametrize(("override", "others", "switch"), EXAMPLES, ids=[example[0] for example in EXAMPLES])
@pytest.mark.parametrize("is_resumed", [True, False])
def test_a_setting_that_nothing_reads_takes_no_effect(override, others, switch, is_resumed):
    def outcome(*settings: str) -> tuple[str, str]:
        before, after = load_recipe("quickstart", settings), load_recipe("quickstart", [*settings, override])
        stage = override.partition(".")[0] if override[:3] in ("dpo", "rl.") else "sft"
        (changed,) = compare_recipes(before, after, stage, (), is_resumed, 5, 1024)
        return changed.outcome, changed.reason

    found, reason = outcome(*others)
    assert found == "not read" and switch.partition("=")[0] in reason
    assert outcome(*others, switch)[0] != "not read"
