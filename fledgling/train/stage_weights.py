"""The weights of a stage: where they come from, which of them are trained and saved. Start with `find_stage_weights`.

A stage that trains an adapter freezes the model and saves only the adapter, as peft's two files, with the place of its
base. The next stage trains the same adapter if [adapter] is unchanged; a stage that trains the weights, or an
adapter of another shape, starts from both merged. `adapter.init_from` is copied into RUN/init_adapter once and decides
the shape.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fledgling.config import AdapterConfig, ModelConfig, Recipe, UserError
from fledgling.export.adapter_base import copy_adapter, read_base, require_base
from fledgling.export.checkpoint_weights import ADAPTER_GROUP, describe_adapter, read_weights
from fledgling.export.peft_format import CONFIG_FILE, from_peft, read_peft, to_peft
from fledgling.export.untrusted import read_json
from fledgling.kernels.frozen_weights import quantize_blocks
from fledgling.model.adapter import (
    AdaptedLinear,
    attach_adapter,
    initialize_adapter,
    is_adapter_name,
    list_adapted,
    load_adapter,
)
from fledgling.model.build import build_model
from fledgling.model.transformer import Transformer
from fledgling.record import checkpoint, write_json
from fledgling.record.atomic_directory import atomic_directory
from fledgling.record.checkpoint import Checkpoint
from fledgling.runtime.device import DeviceSetup
from fledgling.runtime.world import World
from fledgling.train.copied_source import read_source_name, write_source
from fledgling.train.critic import CRITIC, split_critic

INIT_ADAPTER_DIR = "init_adapter"  # in the run directory: a copy of adapter.init_from

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class StageWeights:
    """What a stage starts or resumes from."""

    state: dict[str, Any]  # of the checkpoint
    weights: Tensors  # of the model without the adapter
    adapter: AdapterConfig | None = None  # that the stage trains
    adapter_tensors: Tensors | None = None  # None: a fresh one
    base: Path | None = None  # the checkpoint that the adapter belongs to
    initial_tensors: Tensors | None = None  # of the adapter when the stage began; None: it was fresh


def recipe_with_adapter(recipe: Recipe, run_dir: Path, source: Path | None, name: str | None = None) -> Recipe:
    """Returns the recipe with the shape of `adapter.init_from`, after copying that adapter into the run.

    Args:
        source: a checkpoint of the model that the adapter belongs to.
        name: the stage that starts from `source`; None: another one.

    Raises:
        UserError: it is not an adapter of this model, or says that it belongs to other weights than the stage's.
    """
    if recipe.adapter.init_from is None or recipe.adapter.method == "none":
        return recipe
    if source is None:
        raise UserError("adapter.init_from: an adapter needs the weights that it belongs to: set run.init_from")
    copied, given_name = run_dir / INIT_ADAPTER_DIR, str(recipe.adapter.init_from)
    copied_name = read_source_name(copied)
    if copied_name not in (None, given_name):
        raise UserError(
            f"adapter.init_from is {given_name}, and {copied} is a copy of {copied_name}, with which this run began: "
            "name that one, delete the copy if no stage has begun with it, or start another run with --set run.out=DIR"
        )
    state = checkpoint.read_checkpoint_state(source)
    directory = copied if copied.is_dir() else Path(given_name)
    given, _ = read_peft(directory, ModelConfig.from_dict(state["model"]))
    if (
        name is not None and recipe.adapter.trains_in(name) and "adapter" not in state
    ):  # else it trains that one further
        require_base(directory, read_weights(source).base)
    if not copied.is_dir():
        with atomic_directory(copied) as temporary:
            copy_adapter(directory, temporary, read_json(directory / CONFIG_FILE), read_base(directory))
            write_source(temporary, given_name)
    kept: dict[str, Any] = {name: getattr(recipe.adapter, name) for name in ("stages", "init_from")}
    return replace(recipe, adapter=replace(given, **kept))


def find_stage_weights(
    table: AdapterConfig, name: str, run_dir: Path, saved: Path | None, parent: Path | None
) -> StageWeights | None:
    """Returns what stage `name` starts from `parent`, or resumes from `saved`; None: everything from the seed.

    Args:
        name: of the stage.
        run_dir: of the run.
        saved: the stage's own newest checkpoint; None: it begins.
        parent: the checkpoint of the stage before; None: there is none.

    Raises UserError where the stage trains an adapter and there are no weights to adapt.
    """
    adapter = table if table.trains_in(name) else None
    if parent is None and saved is None:
        if adapter:
            raise UserError(
                f"{name} trains an adapter, and has no weights to adapt: set run.init_from, or train a stage"
            )
        return None
    if saved is not None and adapter is None:
        found = read_weights(saved)
        return StageWeights(found.state, found.merged)
    before = read_weights(parent) if parent else None
    if adapter is None:
        assert before is not None
        return StageWeights(before.state, before.merged)
    if before is None or parent is None:
        raise UserError(f"{name} resumes an adapter, and the checkpoint that it was trained on is missing")
    config = ModelConfig.from_dict(before.state["model"])
    adapter.select_matrices(config)
    base, weights, initial = parent, before.base, before.adapter_tensors
    if before.adapter and adapter.has_tensors_of(before.adapter, config):
        base = before.path
    else:
        weights, initial = before.merged, None
        if (run_dir / INIT_ADAPTER_DIR).is_dir() and adapter.init_from:
            require_base(run_dir / INIT_ADAPTER_DIR, weights)
            initial = read_peft(run_dir / INIT_ADAPTER_DIR, config, adapter)[1]
    if saved is None:
        return StageWeights(before.state, weights, adapter, initial, base, initial)
    tensors = read_peft(saved, config, adapter)[1]
    return StageWeights(checkpoint.read_checkpoint_state(saved), weights, adapter, tensors, base, initial)


def build_stage_model(
    recipe: Recipe, config: ModelConfig, start: StageWeights | None, setup: DeviceSetup, world: World
) -> Transformer:
    """Returns the model of a stage on its device, with its weights and the adapter that the stage trains.

    Weights that are sharded or quantized are loaded into the host's memory first.

    Args:
        config: of the model.
        start: weights to start from; None: initialized from the seed.
        setup: dtype and compiler.
        world: the ranks.
    """
    adapter = start.adapter if start else None
    fill = partial(load_or_init, start=start, seed=recipe.seed)
    model = build_adapted_model(config, adapter, fill, setup, world, recipe.optimizer.zero_stage)
    add_adapter(model, start, recipe.seed)
    return model


def build_adapted_model(
    config: ModelConfig,
    adapter: AdapterConfig | None,
    fill: Callable[[Transformer], object],
    setup: DeviceSetup,
    world: World,
    zero_stage: int | None,
) -> Transformer:
    """Returns a model on its device, compiled and with its frozen weights quantized as an adapter of it has them.

    The adapter itself is not attached yet.

    Args:
        config: of the model.
        adapter: that a stage trains; None: it trains the weights.
        fill: gives the model its weights.
        setup: dtype and compiler.
        world: the ranks.
        zero_stage: of the optimizer; 3 shards the model later, block by block.
    """
    quantized = adapter is not None and adapter.quantization != "none"
    compiled = setup.compiled and (adapter is None or adapter.compiles_blocks(world.device.type, setup.dtype_name))
    sharded = zero_stage == 3 and world.size > 1  # moved block by block when they are sharded
    device = torch.device("cpu") if sharded or quantized else world.device
    model = build_model(config, replace(setup, compiled=compiled), device)
    fill(model)
    if adapter and quantized:
        model.requires_grad_(False)
        quantize_blocks(model, adapter.quantization)
        model.to(world.device)
    return model


def load_or_init(model: Transformer, start: StageWeights | None, seed: int) -> Transformer:
    """Fills a model with the weights that a stage starts from, or initializes them from the seed. Returns the model."""
    if start is not None:
        model.load_state_dict(start.weights)
    else:
        model.initialize(seed)
    return model


def add_adapter(model: Transformer, start: StageWeights | None, seed: int) -> None:
    """Attaches the adapter that a stage trains, with its values; does nothing where the stage trains the weights."""
    if start is None or start.adapter is None:
        return
    attach_adapter(model, start.adapter, model.config)
    if start.adapter_tensors is None:
        initialize_adapter(model, seed)
    else:
        load_adapter(model, start.adapter_tensors)


def make_initial_model(model: Transformer, start: StageWeights) -> Transformer:
    """Returns a frozen copy of an adapted model as it was when the stage began; the two share the frozen weights."""
    shared = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    initial = copy.deepcopy(model, shared).requires_grad_(False)
    if start.initial_tensors is not None:
        load_adapter(initial, start.initial_tensors)
        return initial
    for name, layer in list(list_adapted(initial)):
        parent, _, attribute = name.rpartition(".")
        setattr(initial.get_submodule(parent), attribute, detach_adapter(layer))
    return initial


def detach_adapter(layer: AdaptedLinear) -> nn.Linear:
    """Returns the linear layer without its adapter, on the same weight."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain


# ---- what is saved -------------------------------------------------------------------------------


def split_trained(model: Transformer, adapter: AdapterConfig | None) -> Callable[[Tensors], dict[str, Tensors]]:
    """Returns the function that makes groups of a checkpoint of a model's tensors: what is frozen is left out."""
    return split_critic if adapter is None else partial(_split_adapter, model.config, adapter)


def _split_adapter(config: ModelConfig, adapter: AdapterConfig, tensors: Tensors) -> dict[str, Tensors]:
    own = {name: value for name, value in tensors.items() if is_adapter_name(name)}
    critic = split_critic(tensors).get(CRITIC)
    return {ADAPTER_GROUP: to_peft(config, adapter, own)[1], **({CRITIC: critic} if critic else {})}


def read_trained(loaded: Checkpoint, config: ModelConfig, adapter: AdapterConfig | None) -> Tensors:
    """Returns the tensors that a stage has trained, critic included, by their names in the model."""
    tensors = loaded.tensors.get("model", {})
    if adapter is not None:
        contents = read_json(loaded.path / CONFIG_FILE)
        tensors = from_peft(config, contents, loaded.tensors[ADAPTER_GROUP], adapter)[1]
    return {**tensors, **loaded.tensors.get(CRITIC, {})}


def describe_start(start: StageWeights | None, checkpoint_dir: Path) -> dict[str, Any]:
    """Returns what the state of each checkpoint says of the adapter; {} where the stage trains the weights."""
    if start is None or start.adapter is None or start.base is None:
        return {}
    return {"adapter": describe_adapter(start.adapter, checkpoint_dir, start.base)}


def write_adapter_config(
    stage_dir: Path, model: Transformer, start: StageWeights | None, base: str | None, write: bool
) -> dict[str, Path]:
    """Writes adapter_config.json into the stage's directory; returns it as a file of every checkpoint, by name.

    Args:
        base: the name of the model, for other programs.
        write: whether this rank writes.
    """
    if start is None or start.adapter is None:
        return {}
    path = stage_dir / CONFIG_FILE
    own = {name: value for name, value in model.state_dict().items() if is_adapter_name(name)}
    contents = to_peft(model.config, start.adapter, own, base)[0]
    if write:
        write_json(path, contents)
    return {CONFIG_FILE: path}


def trains_value_head(recipe: Recipe, name: str) -> bool:
    """Returns whether a stage trains a value head besides the model: PPO's critic, or a reward model's score."""
    if name == "rl":
        return recipe.rl.uses_critic
    return name == "dpo" and recipe.dpo.trains_head
