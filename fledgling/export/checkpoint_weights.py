"""The weights of a checkpoint: its own, or those of the checkpoint it names as its base, with its adapter.

A stage that trains an adapter saves only that, as peft's two files, and where its base is. `read_weights` follows the
names; `merged` has what the model computes with in any case.
"""

from __future__ import annotations

import glob
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from fledgling.config import AdapterConfig, ModelConfig, UserError
from fledgling.export.peft_format import TENSORS_FILE, read_peft
from fledgling.kernels.frozen_weights import round_to_quantized
from fledgling.model.adapter import merge_adapter
from fledgling.record import checkpoint
from fledgling.record.atomic_directory import MANIFEST
from fledgling.record.checkpoint import BASES_DIR

ADAPTER_GROUP = TENSORS_FILE.removesuffix(".safetensors")  # of a checkpoint
MAX_BASES = 8  # checkpoints that name one another


@dataclass(frozen=True)
class CheckpointWeights:
    """A model's tensors by name, and the adapter on them, if there is one."""

    path: Path  # the checkpoint whose weights `base` is
    state: dict[str, Any]  # of the checkpoint that was read
    base: dict[str, Tensor]
    adapter: AdapterConfig | None = None
    adapter_tensors: dict[str, Tensor] | None = None

    @property
    def merged(self) -> dict[str, Tensor]:
        """The weights of a plain model that computes the same: on matrices as they were quantized, if they were."""
        if self.adapter is None or self.adapter_tensors is None:
            return self.base
        base = self.base
        if self.adapter.quantization != "none":
            base = round_to_quantized(base, ModelConfig.from_dict(self.state["model"]), self.adapter.quantization)
        return merge_adapter(base, self.adapter, self.adapter_tensors)


def describe_adapter(adapter: AdapterConfig, checkpoint_dir: Path, base: Path) -> dict[str, Any]:
    """Returns what the state of a checkpoint says of its adapter: the configuration, where its base is, and which."""
    described = {"config": asdict(adapter), "base": os.path.relpath(base, checkpoint_dir)}
    return described | {"base_digests": read_weight_digests(base)}


def read_weight_digests(path: Path) -> dict[str, str]:
    """Returns the digests of a checkpoint's weights by file, as its manifest has them; none of one without them."""
    try:
        files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
        return {name: files[name]["sha256"] for name in ("model.safetensors", TENSORS_FILE) if name in files}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def read_adapter_state(state: dict[str, Any], path: Path) -> tuple[AdapterConfig, Path] | None:
    """Returns the adapter and the base that the state of the checkpoint `path` describes; None without an adapter.

    Raises UserError if it describes none that this program writes.
    """
    described = state.get("adapter")
    if described is None:
        return None
    known = {entry.name for entry in fields(AdapterConfig)}
    try:
        given: dict[str, Any] = described["config"]
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
        if set(values) - known:
            raise ValueError(f"unknown fields {sorted(set(values) - known)[:3]}")
        adapter, base = AdapterConfig(**values), path / described["base"]
        if not adapter.scale > 0:
            raise ValueError(f"scale {adapter.scale}")
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"checkpoint {path}: its state describes no adapter: {' '.join(str(error).split())[:120]}"
        ) from None
    return adapter, Path(os.path.normpath(base))


def kept_base(base: Path) -> Path:
    """Returns where the base RUN/STAGE/checkpoints/step-N is kept: RUN/bases/STAGE, as deep, so that its names hold."""
    digest = next(iter(read_weight_digests(base).values()), "")
    return base.parents[2] / BASES_DIR / base.parents[1].name / f"{base.name}-{digest[:12]}"


def find_base(state: dict[str, Any], base: Path) -> Path | None:
    """Returns the checkpoint with the weights that an adapter was trained on; None if it is gone.

    Args:
        state: of the adapter's checkpoint; older ones do not say which weights they were.
        base: where these were then.
    """
    digests = state["adapter"].get("base_digests")
    if base.is_dir() and digests in (None, read_weight_digests(base)):
        return base
    kept = (base.parents[2] / BASES_DIR / base.parents[1].name).glob(f"{glob.escape(base.name)}-*")
    found = [path for path in kept if path.is_dir() and digests in (None, read_weight_digests(path))]
    return found[0] if len(found) == 1 else None


def read_weights(path: Path, check_hashes: bool = True, depth: int = 0) -> CheckpointWeights:
    """Reads the weights of a checkpoint.

    Raises UserError that names a missing base or an adapter that does not fit it.
    """
    state = checkpoint.read_checkpoint_state(path)
    described = read_adapter_state(state, path)
    if described is None:
        loaded = checkpoint.load_checkpoint(path, ("model",), check_hashes)
        return CheckpointWeights(path, loaded.state, loaded.tensors["model"])
    adapter, base = described
    if depth == MAX_BASES:
        raise UserError(f"checkpoint {path}: more than {MAX_BASES} checkpoints name one another as their base")
    found = find_base(state, base)
    if found is None and base.is_dir():
        raise UserError(
            f"checkpoint {path} is an adapter of other weights than those at {base}, which were trained again since: "
            "train its stage again too"
        )
    if found is None:
        remedy = "move or copy the run as a whole"
        if base.parents[1].is_dir():
            remedy = f"put that checkpoint back, or train {base.parents[1].name} and its stage again"
        raise UserError(
            f"checkpoint {path} is an adapter, and the weights that it belongs to are not at {base}: {remedy}"
        )
    base = found
    checkpoint.verify_checkpoint(path, check_hashes)
    below = read_weights(base, check_hashes, depth + 1)
    config = ModelConfig.from_dict(state["model"])
    _, tensors = read_peft(path, config, adapter)
    return CheckpointWeights(base, state, below.merged, adapter, tensors)
