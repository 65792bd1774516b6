"""Every key of a recipe, set to another value than its default, has the effect it names, or is refused in one line.

The tables below have a value for each key; the last tests compare them with the dataclasses, so that a new key needs a
line here. What a value changes is computed without a run where a run is not needed: weights, ids, batches.
"""

import math
import typing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fledgling.cli import main
from fledgling.config import (
    AdapterConfig,
    DPOConfig,
    LoopConfig,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    RLConfig,
    StageConfig,
    UserError,
    load_recipe,
)
from fledgling.data.batch import Batch
from fledgling.infer.engine import Engine
from fledgling.model.adapter import attach_adapter, initialize_adapter
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.plan.plan import make_plan
from fledgling.record import checkpoint, read_jsonl
from fledgling.runtime import device
from fledgling.runtime.world import World
from fledgling.train import loop, run
from fledgling.train.critic import attach_critic
from fledgling.train.loss import next_token_loss
from fledgling.train.prepare import DataPreparer
from fledgling.train.rl.algorithm import ALGORITHMS
from fledgling.train.rl.reward import RewardScorer
from fledgling.train.rl.rollout_stream import RolloutStream
from fledgling.train.source_sizes import count_source_sizes
from fledgling.train.stage import Stage
from tests.made_up_core import write_core_bundle
from tests.made_up_sets import write_public_sets
from tests.ranks import one_thread
from tests.smallest import write_pairs, write_recipe
from tests.train.rl.small_problems import BANDIT, COPY, Problem, tokenizer

Case = tuple[Any, dict[str, Any]]  # a value, and what else must be set, before and after, for it to matter


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e9)
    with one_thread():
        yield


def differ(base: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two outcomes differ in any value or tensor."""
    return base.keys() != other.keys() or any(
        not value.equal(other[name]) if isinstance(value, torch.Tensor) else value != other[name]
        for name, value in base.items()
    )


def fill_zeros(model: Transformer) -> Transformer:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2, generator=draw)
    return model


# ---- [model] -------------------------------------------------------------------------------------------

MODEL: dict[str, Case] = {
    "depth": (1, {}),
    "width": (48, {}),
    "heads": (4, {}),
    "kv_heads": (1, {}),
    "context": (16, {}),
    "intermediate_size": (64, {}),
    "logit_softcap": (1.0, {}),
    "rope_base": (50.0, {}),
    "norm_eps": (0.1, {}),
    "family": ("gpt2", {}),
    "preset": ("nanochat-2026", {}),
    "norm": ("layer", {}),
    "positions": ("learned", {}),
    "rope_direction": (1, {"kv_heads": 1}),
    "activation": ("swiglu", {}),
    "bias": (True, {}),
    "tie_embeddings": (True, {}),
    "qk_norm": (False, {}),
    "embedding_norm": (False, {}),
    "flash_norm": (True, {}),
    "value_embeddings": (1, {}),
    "window_pattern": ("S", {"window_size": 2}),
    "window_size": (3, {"window_pattern": "S"}),
    "residual_scalars": (True, {}),
    "value_gates": (True, {"value_embeddings": 1}),
    "head_gates": (True, {}),
    "exclusive_attention": (True, {}),
    "skip_scalars": (True, {"depth": 4}),
    "back_out": (True, {}),
    "smear": (True, {}),
    "head_dim": (32, {}),
    "qkv_bias": (True, {}),
    "qk_norm_weights": ("head", {"rope_base": 3.0}),
    "norm_placement": ("post", {}),
    "parallel_residual": (True, {}),
    "embedding_multiplier": (2.0, {"embedding_norm": False}),
    "partial_rotary_factor": (0.5, {}),
    "rope_pattern": ("RN", {}),
    "rope_local_base": (50.0, {"window_pattern": "S", "window_size": 9}),
    "rope_type": ("linear", {"rope_factor": 2.0}),
    "rope_factor": (3.0, {"rope_type": "ntk"}),
    "rope_original_context": (20, {"rope_type": "llama3", "rope_factor": 4.0}),
    "rope_low_freq_factor": (0.5, {"rope_type": "llama3", "rope_factor": 4.0, "rope_original_context": 60}),
    "rope_high_freq_factor": (2.0, {"rope_type": "llama3", "rope_factor": 4.0, "rope_original_context": 60}),
    "rope_beta_fast": (4.0, {"rope_type": "yarn", "rope_factor": 2.0, "rope_original_context": 4000}),
    "rope_beta_slow": (0.1, {"rope_type": "yarn", "rope_factor": 2.0, "rope_original_context": 400}),
    "rope_attention_factor": (2.0, {"rope_type": "yarn", "rope_factor": 2.0, "qk_norm": False}),
    "window_last_layer": (True, {"window_pattern": "S", "window_size": 2}),
}


def model_outcome(**table: Any) -> dict[str, Any]:
    """Logits of a row, by a model whose zero parameters are filled, and the longest row."""
    config = ModelConfig(**{"depth": 2, "width": 32, "heads": 2, "context": 24, **table}).resolve(60)
    model = Transformer(config)
    model.initialize(0)
    with torch.no_grad():
        logits = fill_zeros(model).compute_logits(model(torch.arange(16)[None]))
    # Positions differ only where attention sees them from both sides: the direction is a convention of the weights.
    sizes = {"parameters": model.count_parameters(), "context": config.context, "rope": config.rope_direction}
    return {"logits": logits, **sizes}


@pytest.mark.parametrize("key", MODEL)
def test_a_setting_of_the_model_changes_the_model(key):
    value, others = MODEL[key]
    assert differ(model_outcome(**others), model_outcome(**others, **{key: value}))


# ---- [optimizer] ---------------------------------------------------------------------------------------

OPTIMIZER: dict[str, Case] = {
    "matrix_lr": (0.5, {}),
    "embedding_lr": (0.05, {}),
    "head_lr": (0.05, {}),
    "scalar_lr": (0.5, {}),
    "adapter_lr": (0.05, {"adapter": AdapterConfig("lora", rank=2)}),
    "adam_betas": ((0.5, 0.6), {}),
    "adam_eps": (0.1, {}),
    "momentum": (0.5, {}),
    "weight_decay": (0.5, {}),
    "cautious_weight_decay": (True, {"weight_decay": 0.5}),
    "matrix_optimizer": ("normuon", {}),
    "newton_schulz": ("polar_express", {}),
    "newton_schulz_steps": (2, {}),
    "equilibrate": (True, {}),
    "normalize_update": (True, {}),
    "zero_stage": (2, {}),
    "deterministic": ("off", {}),
}


def optimizer_outcome(adapter: AdapterConfig | None = None, **table: Any) -> dict[str, Any]:
    """The weights after three steps; how parameters are distributed and added up."""
    model, world = Transformer(ModelConfig(60, 1, 32, 2, 2, 16, residual_scalars=True)), World.start("cpu")
    model.initialize(0)
    if adapter:
        attach_adapter(model, adapter, model.config)
        initialize_adapter(model, 0)
    fill_zeros(model)
    optimizer = Optimizer(model, OptimizerConfig(**table), world)
    stage = Stage("pretrain", 3, None, next_token_loss, lambda progress: 1.0)
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        tokens, targets = torch.randint(60, (2, 2, 16), generator=draw)
        loop.train_step(stage, model, optimizer, [Batch(tokens, targets)], world)
    distribution = {"zero_stage": optimizer.partition.zero_stage, "deterministic": optimizer.deterministic}
    return {**{name: value.clone() for name, value in model.state_dict().items()}, **distribution}


@pytest.mark.parametrize("key", OPTIMIZER)
def test_a_setting_of_the_optimizer_changes_the_update(key):
    value, others = OPTIMIZER[key]
    assert differ(optimizer_outcome(**others), optimizer_outcome(**others, **{key: value}))


# ---- [adapter] -----------------------------------------------------------------------------------------

ADAPTER: dict[str, Any] = {"method": "dora", "rank": 3, "alpha": 5.0, "targets": ("q_proj", "fc1")}
ADAPTER_ELSEWHERE = ("stages", "init_from", "quantization")  # tests/train/test_stage_weights.py


@pytest.mark.parametrize("key", ADAPTER)
def test_a_setting_of_the_adapter_changes_what_is_trained(key):
    base = {"method": "lora", "rank": 2, "alpha": 4.0}
    plain, other = (optimizer_outcome(AdapterConfig(**table)) for table in (base, {**base, key: ADAPTER[key]}))
    assert differ(plain, other)


DISTILL = "teacher stages match weight temperature top_k".split()  # noqa: SIM905 - tests/train/distill


# ---- [tokenizer] ---------------------------------------------------------------------------------------

TOKENIZER: dict[str, Any] = {
    "vocab_size": 320,
    "max_characters": 3000,
    "max_digits": 2,
    "letter_tokens": False,
    "sources": '["{folder}/other.txt"]',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the smallest recipe, pretrained, without the text of exams."""
    folder = tmp_path_factory.mktemp("settings")
    (folder / "other.txt").write_text("".join(f"{n} other words than those, as {n * n} shows. " for n in range(900)))
    assert main(["train", "pretrain", str(write_recipe(folder)), "--set=sft.mixture={}"]) == 0
    return folder


def recipe_of(folder: Path, *settings: str) -> Recipe:
    return load_recipe(folder / "smallest.toml", ["sft.mixture={}", *settings])


@pytest.mark.parametrize("key", TOKENIZER)
def test_a_setting_of_the_tokenizer_changes_its_ids(key, folder, tmp_path):
    value = str(TOKENIZER[key]).replace("{folder}", str(folder)).replace("False", "false")
    plain, other = (
        DataPreparer(recipe_of(folder, *settings), tmp_path / str(number)).load_or_train_tokenizer().fingerprint()
        for number, settings in enumerate(
            [["tokenizer.vocab_size=323"], ["tokenizer.vocab_size=323", f"tokenizer.{key}={value}"]]
        )
    )
    assert plain != other


# ---- [rl] ----------------------------------------------------------------------------------------------

PPO = {"algorithm": "ppo"}
TWICE = {"epochs": 2}
DENSE = Problem("dense", ("Choose.", "Go."), lambda _, answer: sum(map(ord, answer)) % 11 / 10, lambda _: ("a",), 3)
RL: dict[str, Case] = {
    "algorithm": ("ppo", {}),
    "tasks": ({COPY.name: 1.0, DENSE.name: 1.0}, {}),
    "rewards": ({"task": 1.0, "format": 1.0}, {}),
    "length_penalty": (0.5, {}),
    "length_penalty_free_tokens": (0, {"length_penalty": 0.5}),
    "prompts_per_round": (3, {}),
    "group_size": (6, {}),
    "epochs": (2, {}),
    "minibatches": (2, {}),
    "clip_ratio": (0.001, TWICE),
    "clip_ratio_high": (0.001, TWICE),
    "kl_weight": (0.5, {}),
    "kl_target": (1e-9, {"kl_weight": 0.5}),
    "entropy_weight": (0.5, {}),
    "temperature": (0.5, {}),
    "max_new_tokens": (2, {}),
    "advantage_normalization": ("zscore", {}),
    "loss_normalization": ("sequence", {}),
    "stale_rounds": (1, {}),
    "drop_uniform_groups": (False, {"tasks": {BANDIT.name: 1.0}}),
    "gamma": (0.5, PPO),
    "gae_lambda": (0.5, PPO),
    "value_weight": (2.0, PPO),
    "value_clip": (1e-6, {**PPO, **TWICE}),
}
RL_ELSEWHERE = ("reward_timeout",)  # test_the_time_of_a_reward_is_the_recipes


def rl_outcome(**table: Any) -> dict[str, Any]:
    """Weights and metrics after four steps on small problems."""
    tasks = {problem.name: problem for problem in (BANDIT, COPY, DENSE)}
    base = {"tasks": {DENSE.name: 1.0}, "prompts_per_round": 4, "group_size": 4, "max_new_tokens": 3}
    config = RLConfig(**{**base, "steps": 4, **table})
    words, world = tokenizer(), World.start("cpu")
    model, reference = (Transformer(ModelConfig(words.vocab_size, 1, 16, 2, 2, 24)) for _ in range(2))
    for seed, one in enumerate((model, reference)):
        one.initialize(seed)
        torch.nn.init.normal_(one.head.weight, std=0.3, generator=torch.Generator().manual_seed(seed))
    if ALGORITHMS[config.algorithm].uses_critic:
        attach_critic(model)
    first = reference.requires_grad_(False) if config.kl_weight else None
    stream = RolloutStream(Engine(model, words), config, tasks, 0, 4, world, reference=first)
    stage = Stage("rl", 4, stream, stream.loss, lambda progress: 1.0)
    optimizer = Optimizer(model, OptimizerConfig(head_lr=0.05), world)
    steps = []
    for _ in range(4):
        loop.train_step(stage, model, optimizer, stream.next(), world)
        metrics = stream.metrics()
        steps.append({n: v for n, v in metrics.items() if not n.startswith(("share_", "rollout_"))})
    stream.close()
    return {**{name: value.clone() for name, value in model.state_dict().items()}, "metrics": steps}


@pytest.mark.parametrize("key", RL)
def test_a_setting_of_rl_changes_what_is_learned(key):
    value, others = RL[key]
    assert differ(rl_outcome(**others), rl_outcome(**others, **{key: value}))


def test_the_time_of_a_reward_is_the_recipes(folder):
    """What happens to a reward that takes longer is tested with the rewards."""
    spec = f"{folder}/rewards.py:vowels"
    scorer = RewardScorer(RLConfig(reward_timeout=0.3, rewards={spec: 1.0}), tokenizer())
    assert scorer.custom_rewards[spec].timeout == 0.3


# ---- the stages: what all have, in one run each --------------------------------------------------------

LOOP = {
    "steps": 3,
    "micro_batch_size": 2,
    "learning_rate": 0.5,
    "warmup_steps": 2,
    "decay_fraction": 0.5,
    "final_lr_fraction": 0.1,
    "mixture": {"arithmetic": 0.4, "counting": 0.6},
    "eval_every": 2,
    "eval_questions": 2,
    "sample_every": 1,
    "save_every": 1,
    "keep_checkpoints": 2,
}
PASSES = ("passes",)  # test_passes_multiply_the_steps_that_a_table_leaves_open
OPEN_BATCH = ("examples_per_step", "mixture_unit")  # test_what_an_open_batch_and_a_mixture_are_measured_in
GROWTH = ("batch_warmup_steps", "context_warmup_steps")  # tests/data/test_growth.py
STAGE = {"batch_tokens": 256, "train_on": "assistant", "core_every": 3, "core_max_per_task": 1}
STAGE["quantization_aware"] = "int8"
DPO = {"pairs": "{folder}/others.jsonl", "beta": 0.5, "batch_size": 2, "objective": "simpo", "target_margin": 0.5}
DPO_ELSEWHERE = ("desirable_weight", "undesirable_weight")  # tests/train/test_objectives.py


def stage_settings(stage: str, folder: Path) -> list[str]:
    """Every setting of a stage's table, but those of RL alone."""
    values = {**LOOP, **({"dpo": DPO, "rl": {}}.get(stage, STAGE))}
    if stage == "sft":
        values["train_on"] = "all"

    def toml(value: Any) -> str:
        inner = ", ".join(f"{k} = {v}" for k, v in value.items()) if isinstance(value, dict) else ""
        return f"{{{inner}}}" if inner else str(value).replace("{folder}", str(folder))

    return [f"{stage}.{key}={toml(value)}" for key, value in values.items()]


@pytest.mark.parametrize("stage", ["pretrain", "midtrain", "sft", "dpo", "rl"])
def test_every_setting_that_stages_share_has_its_effect(stage, folder, tmp_path, monkeypatch):
    rates: list[float] = []

    class RecordingOptimizer(Optimizer):
        def __init__(self, model, config, world, lr_multiplier, *others) -> None:
            rates.append(lr_multiplier)
            super().__init__(model, config, world, lr_multiplier, *others)

    monkeypatch.setattr(run, "Optimizer", RecordingOptimizer)
    write_core_bundle(tmp_path / "data")
    write_pairs(folder / "others.jsonl", 5)
    out, before = tmp_path / "run", ["pretrain"] if stage != "pretrain" else []
    settings = [f"run.out={out}", f"run.data_dir={tmp_path / 'data'}", f"stages={[*before, stage]}".replace("'", '"')]
    if before:
        (out / "tokenizer").mkdir(parents=True)
        for name in ("tokenizer", "pretrain"):
            for source in (folder / "run" / name).rglob("*"):
                if source.is_file():
                    target = out / source.relative_to(folder / "run")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(source.read_bytes())
    assert run.run_stage(recipe_of(folder, *settings, *stage_settings(stage, folder)), stage, quiet=True)
    metrics, evals = (read_jsonl(out / stage / f"{name}.jsonl") for name in ("metrics", "evals"))
    assert [line["step"] for line in metrics] == [1, 2, 3]
    assert rates == [0.5]
    # two steps of warm-up; over the last half of three steps the rate falls from 1 to 0.1
    falls = 0.1 + 0.9 * (1 - 2 / 3) / 0.5
    assert [line["lr_multiplier"] for line in metrics] == pytest.approx([0.5, 1.0, falls])
    exams = {line["name"]: line for line in evals if line["name"] in ("arithmetic", "counting")}
    assert exams.keys() == {"arithmetic", "counting"} and {line["n"] for line in exams.values()} == {2}
    assert {line["step"] for line in evals if line["name"] == "counting"} == {0, 2, 3}
    assert {line["step"] for line in read_jsonl(out / stage / "samples.jsonl")} == {0, 1, 2, 3}
    kept = sorted(path.name for path in (out / stage / "checkpoints").glob("step-*"))
    assert [int(name[5:]) for name in kept] == [2, 3]
    assert checkpoint.load_checkpoint(out / stage / "checkpoints" / kept[-1]).state["micro_batch"] == 2
    if stage in ("pretrain", "midtrain", "sft"):
        assert {line["tokens"] - 256 * line["step"] for line in metrics} == {0}
        assert any("rounded to int8" in line["text"] for line in read_jsonl(out / stage / "notices.jsonl"))
        core = [line for line in evals if line["name"].startswith("core")]
        assert {line["step"] for line in core} == {3}
        items = [line["n"] for line in evals if line["name"] == "core_choice"]
        assert items in ([1], []), items
    if stage == "dpo":
        first = metrics[0]
        assert first["accuracy"] in (0.0, 0.5, 1.0), "two pairs a step"
        assert first["loss"] != pytest.approx(math.log(2), abs=1e-2), "SimPO has no reference that it begins at"
    if stage == "rl":
        assert {"reward", "length"} <= metrics[0].keys()


def final_weights(recipe: Recipe, stage: str) -> dict[str, torch.Tensor]:
    run.run_stage(recipe, stage, resume="never", quiet=True, select_evals=lambda evals: ())
    found = checkpoint.find_latest_checkpoint(Path(recipe.run.out) / stage / "checkpoints")
    assert found is not None
    return checkpoint.load_checkpoint(found).tensors["model"]


@pytest.mark.parametrize("key", ["beta", "batch_size", "pairs", "learning_rate", "objective"])
def test_a_setting_of_dpo_changes_what_is_learned(key, folder):
    write_pairs(folder / "others.jsonl", 5)
    value = str({**LOOP, **DPO}[key]).replace("{folder}", str(folder))
    base = ['stages=["pretrain", "dpo"]', "dpo.steps=2", "optimizer.head_lr=0.1"]
    plain, other = (
        final_weights(recipe_of(folder, *base, *settings), "dpo") for settings in ([], [f"dpo.{key}={value}"])
    )
    assert differ(plain, other)


@pytest.mark.parametrize("setting", ["sft.train_on=all", "sft.batch_tokens=256", "sft.learning_rate=0.5"])
def test_a_setting_of_text_changes_what_is_learned(setting, folder):
    base = ['stages=["pretrain", "sft"]', "sft.mixture={identity = 1.0}", "sft.steps=2"]
    plain, other = (final_weights(recipe_of(folder, *base, *extra), "sft") for extra in ([], [setting]))
    assert differ(plain, other)


def open_lengths(folder: Path, data: Path, *settings: str) -> dict[str, tuple[int, int]]:
    """Returns (rows of a step, steps) of fine-tuning and of RL over made-up public sets, without a run."""
    base = [f"run.data_dir={data}", "sft.steps=none", "sft.batch_tokens=none", "rl.steps=none"]
    base += ["sft.mixture={smoltalk = 0.5, arc_easy = 0.5}", "rl.tasks={gsm8k = 1.0}"]
    recipe = load_recipe(folder / "smallest.toml", [*base, *settings])
    stages = make_plan(recipe, sizes=count_source_sizes(recipe))["stages"]
    return {name: (stages[name]["rows_per_step"], stages[name]["steps"]) for name in ("sft", "rl")}


def test_passes_multiply_the_steps_that_a_table_leaves_open(folder, tmp_path):
    data = write_public_sets(tmp_path / "data")
    once, twice = (open_lengths(folder, data, f"sft.passes={passes}", f"rl.passes={passes}") for passes in (1.0, 2.0))
    assert once["rl"][1] == 20 and twice["rl"][1] == 40  # 40 prompts, two a round
    assert twice["sft"][1] in (2 * once["sft"][1], 2 * once["sft"][1] + 1) and twice["sft"][0] == once["sft"][0]


def test_what_an_open_batch_and_a_mixture_are_measured_in(folder, tmp_path):
    data = write_public_sets(tmp_path / "data")
    few, many, by_examples = (
        open_lengths(folder, data, *extra)["sft"]
        for extra in (["sft.examples_per_step=4"], ["sft.examples_per_step=32"], ["sft.mixture_unit=examples"])
    )
    assert few[0] * 8 == many[0] and few[1] > many[1]
    assert by_examples != many


def test_another_seed_is_another_run(folder, tmp_path):
    weights = [
        final_weights(recipe_of(folder, f"seed={seed}", f"run.out={tmp_path / str(seed)}"), "pretrain")
        for seed in (1, 2)
    ]
    assert differ(*weights)


# ---- [run] and the recipe itself -----------------------------------------------------------------------


def test_every_setting_of_a_run_has_its_effect(folder, tmp_path, capsys):
    out = tmp_path / "other"
    found = checkpoint.find_latest_checkpoint(folder / "run" / "pretrain" / "checkpoints")
    settings = [
        *(f"run.out={out}", f"run.init_from={found}", "run.device=cpu", "run.dtype=bfloat16", "run.threads=2"),
        *("run.max_rollbacks=1", f"run.data_dir={tmp_path}", "run.compile=off", "pretrain.learning_rate=1e-9"),
        "run.recompute=on",
        *("name=renamed", "description=Described."),
    ]
    recipe = recipe_of(folder, *settings)
    assert run.run_stage(recipe, "pretrain", quiet=True, select_evals=lambda evals: ())
    assert torch.get_num_threads() == 2
    notices = " ".join(line["text"] for line in read_jsonl(out / "pretrain" / "notices.jsonl"))
    assert "bfloat16, not compiled" in notices and "again in backward" in notices
    assert (out / "pretrain" / "checkpoints" / "step-000000").exists() or any(
        int(path.name[5:]) == 0 for path in (out / "pretrain" / "checkpoints").glob("step-*")
    ), "a run that may roll back saves its first weights"
    start, end = (checkpoint.load_checkpoint(path).tensors["model"] for path in (
        found, checkpoint.find_latest_checkpoint(out / "pretrain" / "checkpoints")
    ))  # fmt: skip
    assert all(torch.allclose(end[name], value, atol=1e-6) for name, value in start.items()), "it began with these"
    written = (out / "recipe.toml").read_text(encoding="utf-8")
    assert 'name = "renamed"' in written and "Described." in written


def test_assumed_hardware_and_ranks_change_the_plan(folder):
    plain, other = (make_plan(recipe_of(folder, *s)) for s in ([], ["run.hardware=h100", "run.ranks=2"]))
    assert plain["hardware"] != other["hardware"]
    assert plain != make_plan(recipe_of(folder, "run.ranks=2"))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["run.device=cuda"], "cuda"),
        (["run.loggers=['nowhere']"], "nowhere"),
        (["run.init_from=nowhere"], "nowhere"),
        (["run.dtype=float64"], "float32, bfloat16, float16"),
        (["run.fp8=true"], "run.fp8"),
        (["run.compile=maybe"], "run.compile"),
        (["stages=['sft', 'pretrain']"], "stages"),
        (["stages=[]"], "stages"),
        (["run.hardware=h10"], "h10"),
    ],
)
def test_what_a_run_cannot_do_is_refused_in_one_line(settings, named, folder, tmp_path, capfd):
    if named == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    words = [f"--set={setting}" for setting in ("sft.mixture={}", f"run.out={tmp_path}", *settings)]
    verb = ["plan"] if named == "h10" else ["train", "pretrain"]
    assert main([*verb, str(folder / "smallest.toml"), *words]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert named in lines[-1] and lines[-1].startswith("error: ")


RUN = "out init_from init_context init_rope device dtype compile threads".split()  # noqa: SIM905
RUN += ["fp8", "recompute", "max_rollbacks", "loggers", "data_dir", "hardware", "ranks"]
TOP = "name description seed stages".split()  # noqa: SIM905


# ---- all keys ------------------------------------------------------------------------------------------


def keys_of(cls: type, *without: type) -> set[str]:
    inherited = {field.name for other in without for field in fields(other)}
    return {field.name for field in fields(cls) if not field.metadata.get("internal")} - inherited


def test_every_key_has_a_value_here():
    hints = typing.get_type_hints(Recipe)
    tables = {name: hint for name, hint in hints.items() if hasattr(hint, "__dataclass_fields__")}
    assert keys_of(Recipe) - tables.keys() == set(TOP)
    assert keys_of(tables["model"]) == set(MODEL)
    assert keys_of(tables["optimizer"]) == set(OPTIMIZER)
    assert keys_of(tables["adapter"]) == {*ADAPTER, *ADAPTER_ELSEWHERE}
    assert keys_of(tables["distill"]) == set(DISTILL)
    assert keys_of(tables["tokenizer"]) == set(TOKENIZER)
    assert keys_of(tables["run"]) == set(RUN)
    assert keys_of(LoopConfig) == {*LOOP, *PASSES}
    assert keys_of(StageConfig, LoopConfig) == {*STAGE, *OPEN_BATCH, *GROWTH}
    assert keys_of(DPOConfig, LoopConfig) == {*DPO, *DPO_ELSEWHERE}
    assert keys_of(RLConfig, LoopConfig) == {*RL, *RL_ELSEWHERE}
    stages = {"pretrain", "midtrain", "sft", "dpo", "rl"}
    assert tables.keys() == {"model", "optimizer", "adapter", "distill", "tokenizer", "run", *stages}, (
        "a new table needs tests here"
    )


def limited_keys() -> list[tuple[str, float]]:
    """Every key with a lowest value."""
    found = []
    for name, hint in typing.get_type_hints(Recipe).items():
        for field in fields(hint) if hasattr(hint, "__dataclass_fields__") else ():
            default = field.default
            if "low" in field.metadata and not isinstance(default, tuple) and field.type.split("[")[0] != "dict":
                found.append((f"{name}.{field.name}", field.metadata["low"]))
    return found


def test_every_value_below_its_range_is_refused_by_name():
    keys = limited_keys()
    assert len(keys) > 80
    for key, low in keys:
        with pytest.raises(UserError, match=rf"^{key}: ") as caught:
            load_recipe("quickstart", [f"{key}={int(low) - 1}"])
        assert "expected" in str(caught.value) and "\n" not in str(caught.value)


def test_a_value_of_another_type_is_refused_by_name():
    for name, hint in typing.get_type_hints(Recipe).items():
        for field in fields(hint) if hasattr(hint, "__dataclass_fields__") else ():
            if not field.metadata.get("internal"):
                with pytest.raises(UserError, match=rf"{name}\.{field.name}"):
                    load_recipe("quickstart", [f"{name}.{field.name}=1979-05-27"])


def test_the_defaults_are_not_the_values_of_these_tables():
    for table, config in ((OPTIMIZER, OptimizerConfig()), (RL, RLConfig())):
        for key, (value, others) in table.items():
            of_table = {name: other for name, other in others.items() if name in vars(config)}
            assert getattr(replace(config, **of_table), key) != value, key
