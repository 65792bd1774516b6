"""A stage that trains an adapter: only it moves and is saved, it is resumed exactly, and the next stage finds it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from fledgling.config import AdapterConfig, ModelConfig, OptimizerConfig, Recipe, UserError, load_recipe
from fledgling.export.adapter_base import describe_base, read_base
from fledgling.export.write_adapter import write_adapter
from fledgling.infer.runner import load_model
from fledgling.model.adapter import attach_adapter, initialize_adapter
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.optim.sharded import shard_parameters
from fledgling.record import checkpoint, read_jsonl
from fledgling.runtime.device import DeviceSetup
from fledgling.runtime.world import World
from fledgling.train import loop, run, stage_weights
from fledgling.train.stage import Stage
from tests.fast_run import write_recipe
from tests.invariants.losses import batch_of, loss_of
from tests.ranks import on_ranks, one_thread
from tests.stop_request import StopRequest

LORA = {"adapter.method": "lora", "adapter.rank": 4}


def recipe_of(folder, *stages: str, **settings) -> Recipe:
    """The smallest recipe with three steps of each stage."""
    steps = {f"{stage}.steps": 3 for stage in stages}
    given = {"stages": json.dumps(stages), "run.out": folder / "run", **steps, **settings}
    return load_recipe(folder / "fast.toml", [f"{name}={value}" for name, value in given.items()])


def latest(out, stage):
    return checkpoint.find_latest_checkpoint(out / stage / "checkpoints")


def tensors_of(out, stage):
    found = checkpoint.load_checkpoint(latest(out, stage))
    return {f"{group}.{name}": value for group, values in found.tensors.items() for name, value in values.items()}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    with one_thread():
        write_recipe(folder)
        run.run_stage(recipe_of(folder, "pretrain"), "pretrain", quiet=True)
    return folder


@pytest.fixture
def copied(pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "copy")
    return tmp_path / "copy"


def test_all_stages_pass_one_adapter_on_and_its_base_stays(copied):
    stages = ["midtrain", "sft", "dpo", "rl"]
    rewards = f'{{"{copied}/rewards.py:vowels" = 1.0}}'
    recipe = recipe_of(copied, "pretrain", *stages, **LORA, **{"rl.kl_weight": 0.1, "rl.rewards": rewards})
    out = copied / "run"
    base, *_ = load_model(out / "pretrain")
    before = None
    for stage in stages:
        assert run.run_stage(recipe, stage, quiet=True)
        names = {path.name for path in latest(out, stage).iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors"} <= names and "model.safetensors" not in names
        assert checkpoint.read_checkpoint_state(latest(out, stage))["adapter"]["base"].startswith("../../../pretrain/")
        optimizer = checkpoint.load_checkpoint(latest(out, stage)).tensors["optimizer"]
        assert all(".adapter." in name or name == "count" for name in optimizer)
        merged, *_ = load_model(out / stage)
        moved = {name for name, value in merged.state_dict().items() if not value.equal(base.state_dict()[name])}
        assert moved == {f"{name}.weight" for name in base.config.block_matrices()}
        distance = sum(float((merged.state_dict()[name] - base.state_dict()[name]).norm()) for name in moved)
        assert before is None or distance != before
        before = distance
    first = read_jsonl(out / "dpo" / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3), "the reference is the adapter that the stage began with"
    assert read_jsonl(out / "rl" / "metrics.jsonl")[0]["kl"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(("stage", "method", "quantization"), [("sft", "dora", "nf4"), ("rl", "dora", "none")])
def test_stopping_and_resuming_equals_not_stopping(copied, stage, method, quantization, monkeypatch):
    settings = {**LORA, "adapter.method": method, "adapter.quantization": quantization, "rl.algorithm": "ppo"}
    recipe, out = recipe_of(copied, "pretrain", stage, **settings), copied / "run"
    assert run.run_stage(recipe, stage, quiet=True)
    whole = tensors_of(out, stage)
    shutil.rmtree(out / stage)
    with monkeypatch.context() as patch:
        patch.setattr(run, "catch_stop_signals", StopRequest(2))
        with pytest.raises(loop.TrainingStopped):
            run.run_stage(recipe, stage, quiet=True)
    assert run.run_stage(recipe, stage, quiet=True)
    again = tensors_of(out, stage)
    assert set(again) == set(whole)
    assert [name for name, value in whole.items() if not again[name].equal(value)] == []


def test_a_stage_without_the_adapter_starts_from_both_merged(copied):
    rates = {f"optimizer.{role}_lr": 1e-9 for role in ("matrix", "embedding", "head", "scalar")}
    recipe = recipe_of(copied, "pretrain", "midtrain", "sft", **LORA, **rates, **{"adapter.stages": '["midtrain"]'})
    run.run_stage(recipe, "midtrain", quiet=True)
    run.run_stage(recipe, "sft", quiet=True)
    (adapted, *_), (whole, *_) = load_model(copied / "run/midtrain"), load_model(copied / "run/sft")
    assert "model.safetensors" in {path.name for path in latest(copied / "run", "sft").iterdir()}
    for name, value in adapted.state_dict().items():
        torch.testing.assert_close(whole.state_dict()[name], value, rtol=0, atol=1e-6)


def test_an_adapter_from_elsewhere_decides_the_shape_and_is_trained_further(copied):
    recipe = recipe_of(copied, "pretrain", "midtrain", **LORA, **{"adapter.targets": '["q_proj", "fc2"]'})
    run.run_stage(recipe, "midtrain", quiet=True)
    given = latest(copied / "run", "midtrain")
    folder = copied / "given"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(given / name, folder / name)
    options = {"adapter.method": "dora", "adapter.init_from": f'"{folder}"', "optimizer.adapter_lr": 1e-9}
    other = recipe_of(copied, "pretrain", "sft", **options)
    run.run_stage(other, "sft", quiet=True)
    shutil.rmtree(folder)  # the run has its own copy
    before, after = tensors_of(copied / "run", "midtrain"), tensors_of(copied / "run", "sft")
    same = [name for name in before if name.startswith("adapter_model.")]
    assert same and all(torch.allclose(before[name], after[name], atol=1e-6) for name in same)
    assert run.run_stage(other, "sft", quiet=True) is False
    another = recipe_of(copied, "pretrain", "sft", **{**options, "adapter.init_from": '"elsewhere"'})
    with pytest.raises(UserError, match=r"adapter.init_from is elsewhere, and .*init_adapter is a copy of .*given"):
        stage_weights.recipe_with_adapter(another, copied / "run", given)


def test_an_exported_adapter_names_its_base_and_is_not_put_on_other_weights(copied):
    out = copied / "run"
    run.run_stage(recipe_of(copied, "pretrain", "midtrain", **LORA), "midtrain", quiet=True)
    write_adapter(latest(out, "midtrain"), copied / "exported")
    card, base = (copied / "exported/README.md").read_text(), read_base(copied / "exported")
    assert base.name == "run, step 3 of pretrain" and f"| `{base.digest}` |" in card and f"| `{base.name}` |" in card
    paths = latest(out, "midtrain"), copied / "exported"
    original, exported = (load_file(path / "adapter_model.safetensors") for path in paths)
    assert original.keys() == exported.keys() and all(original[name].equal(exported[name]) for name in original)
    for name in (str(copied / "exported"), str(latest(out, "midtrain"))):
        with_it = {"adapter.method": "lora", "adapter.init_from": f'"{name}"'}
        recipe, parent = recipe_of(copied, "pretrain", "sft", **with_it), latest(out, "pretrain")
        assert stage_weights.recipe_with_adapter(recipe, out, parent, "sft").adapter.rank == 4
        start = stage_weights.find_stage_weights(recipe.adapter, "sft", out, None, parent)
        assert start.adapter_tensors is not None
        loaded = checkpoint.load_checkpoint(parent, ("model",))
        changed = {name: value * 1.1 for name, value in loaded.tensors["model"].items()}
        other = checkpoint.save_checkpoint(copied / "other/checkpoints", 3, {"model": changed}, loaded.state)
        with pytest.raises(
            UserError, match="is an adapter of other weights than these: it belongs to run, step 3 of pre"
        ):
            stage_weights.find_stage_weights(recipe.adapter, "sft", out, None, other)
        shutil.rmtree(out / "init_adapter")
        with pytest.raises(UserError, match="is an adapter of other weights than these"):
            stage_weights.recipe_with_adapter(recipe, out, other, "sft")
        assert not (out / "init_adapter").exists(), "nothing was copied"


def test_an_adapter_on_weights_that_a_run_was_given_names_these_and_one_without_its_base_says_so(copied):
    given = {"run.init_from": f'"{copied / "run"}"', "run.out": f'"{copied / "tuned"}"'}
    run.run_stage(recipe_of(copied, "sft", **LORA, **given), "sft", quiet=True)
    adapter = latest(copied / "tuned", "sft")
    assert write_adapter(adapter, copied / "exported") is None
    assert read_base(copied / "exported").name == f"{copied.name}/run, given to tuned"
    (copied / "tuned/init/source.json").unlink()
    assert describe_base(adapter).name == "the weights given to tuned"
    shutil.rmtree(copied / "tuned/init")
    assert "does not say which weights it belongs to" in str(write_adapter(adapter, copied / "lost"))


def test_an_adapter_keeps_its_base_when_that_is_trained_again_and_is_not_used_on_another(copied):
    out = copied / "run"
    run.run_stage(recipe_of(copied, "pretrain", "midtrain", **LORA), "midtrain", quiet=True)
    before = {name: value.clone() for name, value in load_model(out / "midtrain")[0].state_dict().items()}
    changed = {"optimizer.matrix_lr": 0.03, "pretrain.steps": 4, "pretrain.save_every": 2}
    run.run_stage(recipe_of(copied, "pretrain", "midtrain", **changed), "pretrain", resume="never", quiet=True)
    assert all(value.equal(before[name]) for name, value in load_model(out / "midtrain")[0].state_dict().items())
    notices = (out / "pretrain" / "notices.jsonl").read_text()
    assert "the adapters of midtrain belong to step-00000003 of pretrain" in notices
    shutil.rmtree(out / "bases")
    with pytest.raises(UserError, match=r"not at .*step-00000003: put that checkpoint back, or train pretrain and its"):
        load_model(out / "midtrain")
    shutil.copytree(latest(out, "pretrain"), out / "pretrain/checkpoints/step-00000003")
    with pytest.raises(UserError, match=r"is an adapter of other weights than those at .*, which were trained again"):
        load_model(out / "midtrain")


@pytest.mark.parametrize(("dtype", "compiled"), [(torch.float32, True), (torch.bfloat16, False)])
def test_an_adapter_in_bfloat16_is_not_compiled_on_a_cpu(copied, dtype, compiled):
    recipe = recipe_of(copied, "pretrain", "sft", **LORA)
    start = stage_weights.find_stage_weights(
        recipe.adapter, "sft", copied / "run", None, latest(copied / "run", "pretrain")
    )
    setup, world = DeviceSetup(dtype, True, 0.0), World.start("cpu")
    config = ModelConfig.from_dict(start.state["model"])
    adapted = stage_weights.build_stage_model(recipe, config, start, setup, world)
    whole = stage_weights.build_stage_model(recipe, config, None, setup, world)
    is_compiled = [model.blocks[0]._compiled_call_impl is not None for model in (adapted, whole)]
    assert is_compiled == [compiled, True]


def test_what_cannot_be_adapted_is_rejected_in_one_line(copied, tmp_path):
    recipe = recipe_of(copied, "sft", **LORA, **{"run.out": tmp_path / "none"})
    with pytest.raises(UserError, match=r"has no weights to adapt: set run.init_from"):
        run.run_stage(recipe, "sft", quiet=True)
    recipe = recipe_of(copied, "pretrain", "sft", **LORA)
    run.run_stage(recipe, "sft", quiet=True)
    shutil.move(copied / "run" / "pretrain", tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"is an adapter, and the weights that it belongs to are not at .*pretrain"):
        load_model(copied / "run/sft")
    shutil.move(tmp_path / "elsewhere", copied / "run" / "pretrain")
    with pytest.raises(UserError, match=r"adapter.rank=8.* is 4 there"):
        run.run_stage(recipe_of(copied, "pretrain", "sft", **{**LORA, "adapter.rank": 8}), "sft", quiet=True)


def test_frozen_weights_are_not_sharded():
    model = Transformer(ModelConfig(61, 1, 36, 2, 1, 24))
    attach_adapter(model, AdapterConfig("lora"), model.config)
    with pytest.raises(UserError, match=r"zero_stage is 3, which shards what is trained.*use 2"):
        shard_parameters(model, None, None, True)


def trained(steps: int = 3) -> dict[str, torch.Tensor]:
    """An adapter after some steps on this process's ranks."""
    world, config = World.start("cpu"), ModelConfig(61, 3, 36, 2, 1, 24)
    model = Transformer(config)
    model.initialize(1)
    attach_adapter(model, AdapterConfig("dora", rank=3), config)
    initialize_adapter(model, 1)
    optimizer = Optimizer(model, OptimizerConfig(deterministic="on", zero_stage=2), world)
    stage = Stage("sft", steps, None, loss_of("sft"), lambda progress: 1.0)
    for step in range(steps):
        batches = batch_of("sft", 6, 24, 61, seed=step).split(1)[world.rank :: world.size]
        loop.train_step(stage, model, optimizer, batches, world)
    return {name: value.detach().clone() for name, value in optimizer.parameters.items()}


def test_any_number_of_ranks_gives_the_same_adapter():
    with one_thread():
        alone = trained()
    for ranks in on_ranks(2, trained):
        assert all(ranks[name].equal(value) for name, value in alone.items())
