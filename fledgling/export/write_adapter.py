"""Writes the adapter of a checkpoint as a directory that peft loads, with a card that names its base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fledgling.config import AdapterConfig, ModelConfig, UserError
from fledgling.export.adapter_base import AdapterBase, copy_adapter, describe_base
from fledgling.export.card_origin import describe_origin, shorten_place
from fledgling.export.checkpoint_weights import read_adapter_state
from fledgling.export.model_card import find_run_dir, format_table
from fledgling.export.own_class import needs_own_class
from fledgling.export.peft_format import CONFIG_FILE
from fledgling.export.untrusted import read_json
from fledgling.record import checkpoint, make_write_error
from fledgling.record.atomic_directory import atomic_directory

CARD = """---
library_name: peft
tags:
- fledgling
- lora
---

# An adapter

A low-rank update of a model's weights, made with fledgling. It belongs to these weights and to no others:

{table}

## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("BASE"{options})  # of fledgling's run: `fledgling export hf RUN/STAGE BASE`
model = PeftModel.from_pretrained(base, ".")
```

The digest of the base is in the header of `adapter_model.safetensors` too. fledgling rejects other weights; peft does
not read it and puts the adapter on any of the same shape.
"""


def write_adapter(path: Path, out: Path, base: str | None = None) -> str | None:
    """Writes the adapter of the checkpoint `path` as the directory `out`, which must not exist or be empty.

    Args:
        base: name of the model that it belongs to; None keeps what the checkpoint says.

    Returns:
        What the user should know: that nothing in the directory says to which weights the adapter belongs; else None.

    Raises:
        UserError: the checkpoint has no adapter, or the directory cannot be written.
    """
    state = checkpoint.read_checkpoint_state(path)
    described = read_adapter_state(state, path)
    if described is None:
        raise UserError(f"checkpoint {path} has no adapter: its stage trained the weights; use export hf")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty directory; choose another directory for the adapter")
    checkpoint.verify_checkpoint(path)
    contents = read_json(path / CONFIG_FILE)
    contents["base_model_name_or_path"] = base or contents.get("base_model_name_or_path")
    weights = describe_base(path)
    try:
        with atomic_directory(out) as temporary:
            copy_adapter(path, temporary, contents, weights)
            card = render_adapter_card(described[0], state, find_run_dir(path), contents, weights)
            (temporary / "README.md").write_text(card, encoding="utf-8")
    except OSError as problem:
        raise make_write_error(out, problem) from None
    if weights is not None:
        return None
    return (
        f"{out} does not say which weights it belongs to, so that it is put on any of their shape: they are not at "
        f"{described[1]}, or are quantized"
    )


def render_adapter_card(
    adapter: AdapterConfig,
    state: Mapping[str, Any],
    run: Path | None,
    contents: Mapping[str, Any],
    base: AdapterBase | None,
) -> str:
    """Returns the text of README.md.

    Args:
        state: of the adapter's checkpoint.
        run: that contains it, or None.
        contents: of adapter_config.json.
        base: the weights that the adapter belongs to; None where the run has them no more.
    """
    unknown = "not known: the run has these weights no more"
    table = [
        ("base", shorten_place(base.name) if base else unknown),
        ("SHA-256 of its weights in bfloat16", f"`{base.digest}`" if base else unknown),
        ("method", f"{adapter.method}, rank {adapter.rank}, alpha {adapter.alpha:g}"),
        ("trained until", f"step {state.get('step', 0):,} of {state.get('stage')}"),
    ]
    if name := contents.get("base_model_name_or_path"):
        table.insert(1, ("name of the base", shorten_place(str(name))))
    if adapter.quantization != "none":
        table.append(("trained on", f"{adapter.quantization} weights of that base"))
    merged = "trained an adapter, merged here"
    origin = [(stage, what.replace(merged, "trained an adapter")) for stage, what in describe_origin(state, run)]
    own_class = needs_own_class(ModelConfig.from_dict(state["model"]))
    options = ", trust_remote_code=True" if own_class else ""
    return CARD.format(table=format_table(("", ""), table + origin), options=options)
