"""Which weights an adapter in peft's format belongs to: a digest of them in the header of adapter_model.safetensors.

peft and transformers read the tensors and leave the header alone, and a file that another program rewrites has none.
Start with `require_base`, which compares the digest where an adapter is put on weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledgling.config import UserError
from fledgling.export.checkpoint_weights import read_adapter_state, read_weights
from fledgling.export.peft_format import CONFIG_FILE, TENSORS_FILE
from fledgling.export.untrusted import open_safetensors, read_json
from fledgling.record import checkpoint
from fledgling.record.tensor_file import write_tensor_file

DIGEST, NAME = "fledgling.base_sha256", "fledgling.base"  # in the header's metadata
SHOWN = 12  # digits of a digest in messages
MAX_NAME = 120


@dataclass(frozen=True)
class AdapterBase:
    """The weights that an adapter was trained on: their digest, and a name for people."""

    digest: str
    name: str


def hash_weights(weights: Mapping[str, Tensor]) -> str | None:
    """Returns the SHA-256 of a model's weights by our names, rounded to bfloat16; None where some are quantized.

    So a model and its export in bfloat16 have one digest. An export in float16 has another, because some values are
    rounded twice, and a quantized one too.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        if type(tensor) not in (Tensor, torch.nn.Parameter) or not tensor.is_floating_point():
            return None
        rounded = tensor.detach().to(torch.bfloat16).cpu().contiguous()
        digest.update(json.dumps([name, list(rounded.shape)]).encode())
        digest.update(rounded.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def describe_base(path: Path) -> AdapterBase | None:
    """Returns the weights that the adapter of the checkpoint `path` belongs to; None where the run has them no more."""
    try:
        found = read_weights(path)
    except UserError:
        return None
    digest, state = hash_weights(found.base), checkpoint.read_checkpoint_state(found.path)
    return None if digest is None else AdapterBase(digest, _name_base(found.path.resolve(), state))


def _name_base(path: Path, state: Mapping[str, Any]) -> str:
    """Returns a name of the weights of a checkpoint: run, step and stage, or what a run was given (RUN/init/step-0)."""
    if state.get("stage") is not None:
        return f"{path.parents[2].name}, step {state.get('step')} of {state['stage']}"
    with contextlib.suppress(UserError):
        source = read_json(path.parent / "source.json").get("source")
        if isinstance(source, str):
            return f"{'/'.join(Path(source).parts[-2:])}, given to {path.parents[1].name}"
    return f"the weights given to {path.parents[1].name}"


def read_base(directory: Path) -> AdapterBase | None:
    """Returns the weights that an adapter belongs to: as its header says it, or of a checkpoint as its state does.

    None where nothing says it.
    """
    with open_safetensors(directory / TENSORS_FILE) as file:
        header = file.metadata() or {}
    if digest := header.get(DIGEST):
        name = "".join(c if c.isprintable() else "?" for c in header.get(NAME, ""))[:MAX_NAME]
        return AdapterBase(digest, name or "not named")
    try:
        has_adapter = read_adapter_state(checkpoint.read_checkpoint_state(directory), directory) is not None
    except UserError:  # no checkpoint
        return None
    return describe_base(directory) if has_adapter else None


def require_base(directory: Path, weights: Mapping[str, Tensor]) -> None:
    """Raises UserError where an adapter says that it belongs to other weights than these, which are by our names."""
    base = read_base(directory)
    if base is None or (digest := hash_weights(weights)) in (None, base.digest):
        return
    raise UserError(
        f"{directory} is an adapter of other weights than these: it belongs to {base.name} (SHA-256 "
        f"{base.digest[:SHOWN]} in bfloat16), and these have {str(digest)[:SHOWN]}: give the weights that it belongs to"
    )


def save_adapter(
    directory: Path, contents: Mapping[str, Any], tensors: Mapping[str, Tensor], base: AdapterBase | None
) -> None:
    """Writes peft's two files into a directory, with the base in the header of the second."""
    header = {"format": "pt"} | ({DIGEST: base.digest, NAME: base.name} if base else {})
    (directory / CONFIG_FILE).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    write_tensor_file(directory / TENSORS_FILE, tensors, header)


def copy_adapter(source: Path, directory: Path, contents: Mapping[str, Any], base: AdapterBase | None) -> None:
    """Writes the adapter in `source` into a directory: its tensors bit for bit, with these contents and this base."""
    if base is None:
        (directory / CONFIG_FILE).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(source / TENSORS_FILE, directory / TENSORS_FILE)
        return
    with open_safetensors(source / TENSORS_FILE) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
    save_adapter(directory, contents, tensors, base)
