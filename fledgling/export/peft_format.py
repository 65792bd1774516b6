"""Adapters in the format of the peft library: adapter_config.json and the tensors of adapter_model.safetensors.

A class of transformers may hold several of our matrices in one (GPT-2's c_attn). Written, their adapters become one of
several times the rank: the A below each other, the B as blocks on a diagonal, which is the same function. Read, such a
diagonal becomes our matrices again, and any other adapter of a joint matrix is split by rows of B, with a copy of A
each. Adapters of several ranks are padded with zeros to the largest one.

r rank; out and in, the widths of a matrix.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fledgling.config import AdapterConfig, ModelConfig, UserError
from fledgling.export.hf_mapping import tensor_mappings
from fledgling.export.hf_tensor import TensorMapping, join_rows, split_hf_rows
from fledgling.export.untrusted import open_safetensors, read_json, require_floats

CONFIG_FILE, TENSORS_FILE = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK = 1 << 12
# Of a pattern of modules: characters, what may match in several ways (the time is polynomial in it), alternatives.
MAX_PATTERN, MAX_CHOICES, MAX_ALTERNATIVES = 512, 4, 32
MAX_PATTERNS = 1_024  # of a table
PREFIX = "base_model.model."
# Keys that change what the tensors mean, with the values that leave them as they are read here.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "lora_bias": (False, None),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "megatron_config": (None,),
    "kasa_config": (None,),
    "arrow_config": (None,),
    "monteclora_config": (None,),
}
PLAIN_INITIALIZATIONS = ("gaussian", "orthogonal", "eva", "mica")  # of init_lora_weights: the base stays as it is
CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")  # the adapter is relative to other base weights


@dataclass(frozen=True)
class Update:
    """The adapter of one of our matrices: scale B A, and the lengths of the rows (DoRA) or None."""

    A: Tensor  # (r, in)
    B: Tensor  # (out, r)
    scale: float
    magnitude: Tensor | None  # (out,)


def list_modules(config: ModelConfig) -> dict[str, TensorMapping]:
    """Returns module of the model's class in transformers -> our matrices in it, of those of the blocks."""
    matrices = config.block_matrices()
    modules = {}
    for mapping in tensor_mappings(config):
        names = tuple(name.removesuffix(".weight") for name in mapping.names)
        if mapping.hf_name.endswith(".weight") and all(name in matrices for name in names):
            modules[mapping.hf_name.removesuffix(".weight")] = replace(mapping, names=names)
    return modules


# ---- writing -------------------------------------------------------------------------------------


def to_peft(
    config: ModelConfig, adapter: AdapterConfig, tensors: Mapping[str, Tensor], base: str | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the contents of adapter_config.json and the tensors of an adapter.

    Args:
        tensors: the adapter's, by our names.
        base: the name of the model that it belongs to, for other programs.

    Raises:
        UserError: DoRA on a part of a joint matrix, whose other rows have no magnitude.
    """
    chosen = adapter.select_matrices(config)
    shapes = config.block_matrices()
    written: dict[str, Tensor] = {}
    joint: dict[str, int] = {}
    modules = {module: one for module, one in list_modules(config).items() if set(one.names) & set(chosen)}
    for module, mapping in modules.items():
        names = mapping.names
        adapted = [name for name in names if name in chosen]
        if adapter.has_magnitude and len(adapted) < len(names):
            raise UserError(
                f"adapter.targets: {module} is one matrix in transformers, and DoRA adapts it as a whole: "
                f"name all of {', '.join(name.rpartition('.')[2] for name in names)}"
            )
        part = {name: f"{name}.adapter." for name in names}
        written[f"{PREFIX}{module}.lora_A.weight"] = torch.cat([tensors[f"{part[name]}lora_A"] for name in adapted])
        rows = []
        for name in names:
            blocks = [
                tensors[f"{part[one]}lora_B"] if one == name else torch.zeros(shapes[name][0], adapter.rank)
                for one in adapted
            ]
            rows.append(torch.cat([block.cpu() for block in blocks], dim=1))
        written[f"{PREFIX}{module}.lora_B.weight"] = join_rows(mapping, rows)
        if adapter.has_magnitude:
            lengths = join_rows(mapping, [tensors[f"{part[name]}magnitude"] for name in names])
            written[f"{PREFIX}{module}.lora_magnitude_vector"] = lengths
        if len(adapted) > 1:
            joint[module] = len(adapted)
    power = 0.5 if adapter.method == "rslora" else 1.0
    contents = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "use_rslora": adapter.method == "rslora",
        "use_dora": adapter.has_magnitude,
        "target_modules": _target_modules(config, list(modules)),
        "rank_pattern": {module: adapter.rank * count for module, count in joint.items()},
        "alpha_pattern": {module: adapter.alpha * count**power for module, count in joint.items()},
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": any(mapping.transposed for mapping in tensor_mappings(config)),
        "init_lora_weights": True,
        "inference_mode": True,
    }
    return contents, {name: tensor.detach().float().cpu().contiguous() for name, tensor in written.items()}


def _target_modules(config: ModelConfig, modules: list[str]) -> list[str]:
    """Returns modules by their last names where these name no others, else in full."""
    last_names = {module.rpartition(".")[2] for module in modules}
    same = [module for module in list_modules(config) if module.rpartition(".")[2] in last_names]
    return sorted(last_names) if sorted(same) == sorted(modules) else sorted(modules)


# ---- reading -------------------------------------------------------------------------------------


def read_peft(
    directory: Path, config: ModelConfig, expected: AdapterConfig | None = None
) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """Reads an adapter of a model from a directory in peft's format; expected: see `from_peft`.

    Raises UserError naming the file, key or tensor that is not one of an adapter of this model.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; expected one with {CONFIG_FILE} and {TENSORS_FILE}")
    contents = read_json(directory / CONFIG_FILE)
    file = directory / TENSORS_FILE
    if not file.is_file():
        raise UserError(f"{directory} has no {TENSORS_FILE} (no pickle is ever read)")
    with open_safetensors(file) as opened:
        prefixes = tuple(f"{PREFIX}{module}." for module in list_modules(config))
        for name in opened.keys():  # noqa: SIM118 - before anything is read; the file is not a dictionary
            if not name.startswith(prefixes):
                raise UserError(f"{file}: tensor {name[:120]} belongs to no matrix of this model's blocks")
        tensors = {name: require_floats(file, name, opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
    try:
        return from_peft(config, contents, tensors, expected)
    except UserError as error:
        raise UserError(f"{directory}: {error}") from None


def from_peft(
    config: ModelConfig,
    contents: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    expected: AdapterConfig | None = None,
) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """Returns an adapter and its tensors by our names; the inverse of `to_peft`.

    Args:
        contents: of adapter_config.json.
        expected: the adapter that `to_peft` wrote, if it is known: then its tensors come back bit for bit.

    Raises:
        UserError: naming the key or tensor that does not fit.
    """
    _check_supported(contents)
    rank, alpha, rooted = _number(contents, "r"), _number(contents, "lora_alpha"), bool(contents.get("use_rslora"))
    chosen = expected.select_matrices(config) if expected else {}
    unused, shapes = dict(tensors), config.block_matrices()
    updates: dict[str, Update] = {}
    for module, mapping in list_modules(config).items():
        names = mapping.names
        A = unused.pop(f"{PREFIX}{module}.lora_A.weight", None)
        if A is None:
            continue
        _require_layer(contents, module)
        B = unused.pop(f"{PREFIX}{module}.lora_B.weight", torch.empty(0))
        magnitude = unused.pop(f"{PREFIX}{module}.lora_magnitude_vector", None) if contents.get("use_dora") else None
        rows, r = [shapes[name][0] for name in names], int(_read_module_number(contents, "rank_pattern", module, rank))
        expected_shapes = [[r, shapes[names[0]][1]], [sum(rows), r], [sum(rows)] if contents.get("use_dora") else None]
        found = [None if tensor is None else list(tensor.shape) for tensor in (A, B, magnitude)]
        if found != expected_shapes or not 1 <= r <= MAX_RANK:
            raise UserError(f"{module}: lora_A, lora_B and magnitude are {found}; rank {r} implies {expected_shapes}")
        scale = _read_module_number(contents, "alpha_pattern", module, alpha) / (r**0.5 if rooted else r)
        adapted = [name for name in names if name in chosen]
        parts = split_hf_rows(mapping, B, rows)
        is_joint = len(names) > 1 and r % (int(rank) * len(names)) == 0
        if not expected and is_joint and _is_diagonal(parts):
            adapted = list(names)
        lengths = (
            dict(zip(names, split_hf_rows(mapping, magnitude, rows), strict=True)) if magnitude is not None else {}
        )
        for name, part in zip(names, parts, strict=True):
            if name in adapted:
                index, size = adapted.index(name), r // len(adapted)
                pair = A.split(size)[index], part.split(size, dim=1)[index].contiguous()
            elif expected:
                continue
            else:
                pair = A, part
            updates[name] = Update(*pair, scale, lengths.get(name))
    if unused:
        raise UserError(f"tensor {min(unused)[:120]} is of no matrix that this model has")
    if not updates:
        raise UserError("there is no lora_A of a matrix of this model's blocks")
    return _merge_updates(config, updates, bool(contents.get("use_dora")), rooted)


def _check_supported(contents: Mapping[str, Any]) -> None:
    for key, supported in SUPPORTED.items():
        value = contents.get(key, None if key == "peft_type" else supported[0])
        if not any(value is one or (value == one and type(value) is type(one)) for one in supported):
            raise UserError(f"{key} is {str(value)[:60]!r}, which is not supported; expected {supported[0]!r}")
    initialization = contents.get("init_lora_weights", True)
    name = initialization.lower() if isinstance(initialization, str) else ""
    if name.startswith(CHANGED_BASES):
        raise UserError(
            f"init_lora_weights is {initialization[:60]!r}, which changes the base's weights before training: on the "
            "base as it is, this adapter is another model; convert it to a plain one first "
            '(save_pretrained(path_initial_model_for_weight_conversion="..."), in peft)'
        )
    if initialization not in (True, False, None) and name not in PLAIN_INITIALIZATIONS:
        expected = ", ".join(map(repr, (True, False, *PLAIN_INITIALIZATIONS)))
        raise UserError(f"init_lora_weights is {str(initialization)[:60]!r}, which is not known; expected {expected}")


def _require_layer(contents: Mapping[str, Any], module: str) -> None:
    """Raises UserError for a matrix of a layer that `layers_to_transform` leaves out, which peft would not read."""
    layers = contents.get("layers_to_transform")
    listed = layers if isinstance(layers, list) else [layers]
    layer = next((int(part) for part in module.split(".") if part.isdecimal()), None)
    if layers not in (None, []) and layer not in listed:
        raise UserError(
            f"layers_to_transform is {str(layers)[:60]}, and there are tensors of layer {layer}: peft leaves them out"
        )


def _number(contents: Mapping[str, Any], key: str) -> float:
    value = contents.get(key, 8)  # peft's default of both
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise UserError(f"{key} is {str(value)[:60]!r}; expected a number above 0")
    if key == "r" and (value != int(value) or value > MAX_RANK):
        raise UserError(f"r is {value}; expected a whole number up to {MAX_RANK}")
    return value


def _read_module_number(contents: Mapping[str, Any], key: str, module: str, default: float) -> float:
    """Returns the number that a pattern gives a module.

    As in peft, a pattern is a regular expression of the module's whole name or of its last parts; the first one counts.
    Raises UserError for one whose match could take long.
    """
    patterns = contents.get(key) or {}
    if not isinstance(patterns, dict):
        raise UserError(f"{key} is {str(patterns)[:60]!r}; expected a table of numbers")
    if len(patterns) > MAX_PATTERNS:
        raise UserError(f"{key} has {len(patterns):,} patterns; expected at most {MAX_PATTERNS:,}")
    for name, value in patterns.items():
        choices = len(re.findall(r"[*+?{(]", name))
        is_slow = choices > MAX_CHOICES or name.count("|") > MAX_ALTERNATIVES
        if len(name) > MAX_PATTERN or is_slow or re.search(r"\)\s*[*+?{]|\(\?", name):
            expected = f"at most {MAX_CHOICES} of * + ? {{ and (, no repeated group and no (?"
            raise UserError(f"{key} has the pattern {name[:60]!r}; expected {expected}")
        try:
            matches = re.match(rf"(.*\.)?({name})$", module) is not None
        except re.error as error:
            raise UserError(f"{key} has the pattern {name[:60]!r}: {error}") from None
        if matches:
            return _number({"r" if key == "rank_pattern" else key: value}, "r" if key == "rank_pattern" else key)
    return default


def _is_diagonal(rows: list[Tensor]) -> bool:
    """Returns whether n tensors (out, n r), below each other, are zero except n blocks on the diagonal."""
    parts = [part.split(part.shape[1] // len(rows), dim=1) for part in rows]
    return not any(block.any() for i, part in enumerate(parts) for j, block in enumerate(part) if i != j)


def _merge_updates(
    config: ModelConfig, updates: Mapping[str, Update], has_magnitude: bool, rooted: bool
) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """Returns one configuration of all updates, and their tensors: ranks are padded, other scales go into B."""
    rank = max(len(update.A) for update in updates.values())
    first = next(iter(updates.values())).scale
    method = "dora" if has_magnitude else "rslora" if rooted else "lora"
    alpha = first * (rank**0.5 if method == "rslora" else rank)
    last_names = {name.rpartition(".")[2] for name in updates}
    complete = all(name in updates for name in config.block_matrices() if name.rpartition(".")[2] in last_names)
    adapter = AdapterConfig(method, rank, alpha, targets=tuple(sorted(last_names if complete else updates)))
    tensors: dict[str, Tensor] = {}
    for name in adapter.select_matrices(config):
        update, part = updates[name], f"{name}.adapter."
        missing = rank - len(update.A)
        B = update.B if math.isclose(update.scale, first, rel_tol=1e-9) else update.B * (update.scale / first)
        tensors[f"{part}lora_A"] = F.pad(update.A, (0, 0, 0, missing)) if missing else update.A
        tensors[f"{part}lora_B"] = F.pad(B, (0, missing)) if missing else B
        if update.magnitude is not None:
            tensors[f"{part}magnitude"] = update.magnitude
    return adapter, tensors
