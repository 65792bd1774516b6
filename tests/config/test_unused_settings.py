"""Settings that another one switches off: a change of them takes no effect, and prevents no start."""

import pytest

from fledgling.config import load_recipe, recipe_names
from fledgling.config.changes import compare_recipes
from fledgling.config.unused_settings import describe_unused

ALL_STAGES = 'stages=["pretrain", "midtrain", "sft", "dpo", "rl"]'
PLAIN = "model.preset=nanochat-2025"
ADAPTER = ('stages=["sft", "rl"]', "adapter.method=lora")
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
    ("rl.reward_timeout=3", (), 'rl.rewards={"a.py:f" = 1.0}'),
    ("rl.drop_uniform_groups=false", ("rl.kl_weight=0.1",), "rl.kl_weight=0"),
    ("sft.core_max_per_task=3", (), "sft.core_every=5"),
    ("sft.num_epochs=3", (), "sft.steps=none"),
    ("sft.final_lr_fraction=0.5", ("sft.decay_fraction=0",), "sft.decay_fraction=0.5"),
    ("distill.weight=0.5", ("distill.teacher=elsewhere", "distill.stages=[]"), 'distill.stages=["sft"]'),
    ("adapter.rank=8", ("adapter.method=lora", 'adapter.stages=["dpo"]', 'stages=["sft"]'), 'adapter.stages=["sft"]'),
    ("midtrain.mixture_unit=examples", ('stages=["sft"]',), 'stages=["midtrain", "sft"]'),
    ("sft.mixture_unit=examples", ("sft.mixture={stdlib = 1.0}",), "sft.mixture={stdlib = 1.0, spelling = 1.0}"),
    ("sft.decay_fraction=0.7", ("sft.final_lr_fraction=1",), "sft.final_lr_fraction=0.9"),
    ("rl.drop_uniform_groups=false", ("rl.kl_weight=0", "rl.algorithm=ppo"), "rl.algorithm=grpo"),
    ("rl.drop_uniform_groups=false", ("rl.kl_weight=0", "rl.algorithm=distill"), "rl.algorithm=gspo"),
    ("rl.length_penalty=0.5", ("rl.algorithm=distill",), "rl.algorithm=grpo"),
    ("rl.length_penalty=0.5", ("rl.length_penalty_free_tokens=64",), "rl.length_penalty_free_tokens=63"),
    ("dpo.eval_every=7", ("dpo.objective=reward",), "dpo.objective=dpo"),
    ("dpo.sample_every=7", ("dpo.objective=reward",), "dpo.objective=dpo"),
    ("distill.weight=0.5", ("rl.algorithm=distill", 'stages=["sft"]'), "distill.teacher=elsewhere"),
    (
        "distill.temperature=2",
        ("rl.algorithm=distill", "distill.teacher=elsewhere", "distill.stages=[]"),
        'distill.stages=["sft"]',
    ),
    ("optimizer.matrix_lr=0.5", (*ADAPTER, 'adapter.stages=["sft", "rl"]'), 'adapter.stages=["sft"]'),
    ("optimizer.momentum=0.5", (*ADAPTER, 'adapter.stages=["sft", "rl"]'), "adapter.method=none"),
    ("optimizer.head_lr=0.5", ADAPTER, "adapter.method=none"),
    ("optimizer.cautious_weight_decay=true", ("optimizer.weight_decay=0",), "optimizer.weight_decay=0.1"),
    (
        "optimizer.embedding_lr=0.5",
        ("model.tie_embeddings=true", "model.value_embeddings=0"),
        "model.tie_embeddings=false",
    ),
    ("optimizer.scalar_lr=0.5", ("rl.algorithm=grpo", PLAIN), "model.norm=rms_weighted"),
    ("model.window_size=60", (), "model.window_pattern=SL"),
    ("model.rope_base=500", ("model.positions=learned",), "model.positions=rope"),
    ("model.rope_beta_fast=5", ("model.rope_type=ntk", "model.rope_factor=2"), "model.rope_type=yarn"),
    ("model.embedding_multiplier=2", (), "model.embedding_norm=false"),
    ("model.preset=nanochat-2025", ("model.family=llama",), "model.family=fledgling"),
]
ONLY_NEW = [  # no run that has begun reads them, or a change of them is rejected
    ("optimizer.tied_updates=5", ('stages=["sft"]',), 'stages=["pretrain", "sft"]'),
    ("pretrain.num_epochs=3", (), "pretrain.steps=none"),
    ("pretrain.save_every=3", ('stages=["sft"]',), 'stages=["pretrain", "sft"]'),
    ("tokenizer.max_digits=3", ("run.init_from=elsewhere",), "run.init_from=none"),
    ("model.window_size=300", ("model.window_pattern=SL", "model.context=300"), "model.context=512"),
    ("model.rope_type=linear", (), "model.rope_factor=2"),
    ("run.init_rope=ntk", ("run.init_from=elsewhere",), "run.init_context=512"),
    ("run.init_context=64", (), "run.init_from=elsewhere"),
]


@pytest.mark.parametrize(("override", "others", "switch"), EXAMPLES, ids=[example[0] for example in EXAMPLES])
@pytest.mark.parametrize("is_resumed", [True, False])
def test_a_setting_that_nothing_reads_takes_no_effect(override, others, switch, is_resumed):
    def outcome(*settings: str) -> tuple[str, str]:
        settings = (ALL_STAGES, *settings)
        before, after = load_recipe("quickstart", settings), load_recipe("quickstart", [*settings, override])
        stage = override.partition(".")[0] if override[:3] in ("dpo", "rl.") else "sft"
        (changed,) = compare_recipes(before, after, stage, (), is_resumed, 5, 1024)
        return changed.outcome, changed.reason

    found, reason = outcome(*others)
    assert found == "not read" and switch.partition("=")[0] in reason
    assert outcome(*others, switch)[0] != "not read"


@pytest.mark.parametrize(
    ("override", "others", "switch"), [*EXAMPLES, *ONLY_NEW], ids=[example[0] for example in [*EXAMPLES, *ONLY_NEW]]
)
def test_a_new_recipe_that_states_what_nothing_reads_is_reported(override, others, switch):
    name = override.partition("=")[0]

    def lines(*settings: str) -> list[str]:
        found = describe_unused(load_recipe("quickstart", [ALL_STAGES, *settings, override]))
        table, _, field = name.partition(".")
        together = [line for line in found if line.startswith(f"[{table}] is not read (") and field in line]
        return [line for line in found if line.startswith(f"{name} = ")] + together

    (line,) = lines(*others)
    assert " is not read" in line and switch.partition("=")[0] in line
    assert lines(*others, switch) == []


def test_no_recipe_of_the_package_states_what_nothing_reads_and_no_default_is_reported(tmp_path):
    whole = describe_unused(load_recipe("quickstart", ['stages=["sft"]']))  # states many settings of the others
    assert len(whole) <= 8 and "[midtrain] is not read (batch_tokens, decay_fraction, " in "\n".join(whole)
    assert [line for name in recipe_names() for line in describe_unused(load_recipe(name))] == []
    (tmp_path / "own.toml").write_text("[adapter]\nrank = 16\n[rl]\ngamma = 1\n[model]\ndepth = 2\n")
    assert [line.partition(" ")[0] for line in describe_unused(load_recipe(tmp_path / "own.toml"))] == [
        "adapter.rank",
        "rl.gamma",
    ]
