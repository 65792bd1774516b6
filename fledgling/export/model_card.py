"""Renders the model card: every value on it is read from the checkpoint or from a file of its run."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fledgling.config import ModelConfig
from fledgling.export.chat_template import supports_chat
from fledgling.export.hf_mapping import CLASSES, to_hf_config
from fledgling.record import read_jsonl
from fledgling.text.tokenizer import Tokenizer

FRONT_MATTER = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- fledgling
- {kind}
---

# {name}

{sentence}
"""
USAGE_SECTION = """
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
{lines}
print(tokenizer.decode(model.generate(ids, max_new_tokens=64)[0]))
```
"""
CHAT_USAGE = """messages = [{"role": "user", "content": "How many r are in strawberry?"}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]"""
COMPLETION_USAGE = """ids = tokenizer("{start}" + "The sea", return_tensors="pt")["input_ids"]"""
TEMPLATE_WARNING = """
The template is rendered as text and tokenized as a whole, so the name of a control token in a user's message becomes
that token. A server for untrusted text should remove such names, or tokenize each part separately.
"""


def render_model_card(
    config: ModelConfig, parameters: int, tokenizer: Tokenizer, state: Mapping[str, Any], run: Path | None
) -> str:
    """Returns the text of README.md. state: the checkpoint's; run: the run directory that contains it, or None."""
    recipe = _recipe(state)
    name = str(recipe.get("name") or state.get("name") or "model")
    chat = supports_chat(tokenizer) and state.get("stage") != "pretrain"
    kind = "A chat model" if chat else "A language model"
    sentence = f"{kind} of {parameters:,} parameters, made with fledgling and loaded as `{CLASSES[config.family]}`."
    table = [
        ("family", config.family),
        ("parameters", f"{parameters:,}"),
        ("layers x width", f"{config.depth} x {config.width}"),
        ("heads", f"{config.heads} of {config.head_width}, {config.kv_heads} for keys and values"),
        ("feed-forward", f"{config.activation}, {config.intermediate_size} wide"),
        ("context", f"{config.context:,} tokens"),
        ("vocabulary", f"{config.vocab_size:,} entries"),
    ]
    if "stage" in state:
        table.append(("trained until", f"step {state.get('step', 0):,} of {state['stage']}"))
    if "seed" in recipe:
        table.append(("seed", str(recipe["seed"])))
    parts = [
        FRONT_MATTER.format(kind=to_hf_config(config)["model_type"], name=name, sentence=sentence),
        _table(("", ""), table),
    ]
    evaluations = list(_evaluations(run, str(state.get("stage")))) if run else []
    if evaluations:
        parts += ["\n## Measured during training\n", _table(("stage", "step", "what", "value", "95 %"), evaluations)]
    start = next((text for text, index in tokenizer.special_tokens.items() if index == tokenizer.bos_or_none), "")
    parts.append(
        USAGE_SECTION.format(lines=CHAT_USAGE if chat else COMPLETION_USAGE.format(start=start))
        + (TEMPLATE_WARNING if chat else "")
    )
    return "\n".join(parts)


def find_run_dir(checkpoint: Path) -> Path | None:
    """Returns the run directory that contains a checkpoint, RUN/STAGE/checkpoints/step-N; None outside of a run."""
    run_dir = checkpoint.resolve().parents[2]
    return run_dir if (run_dir / "recipe.toml").is_file() else None


def _recipe(state: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return tomllib.loads(str(state.get("recipe", "")))
    except tomllib.TOMLDecodeError:
        return {}


def _evaluations(run: Path, stage: str) -> Iterable[tuple[str, ...]]:
    """Yields the last value of every evaluation of the checkpoint's stage."""
    last = {line["name"]: line for line in read_jsonl(run / stage / "evals.jsonl") if "name" in line}
    for name, line in last.items():
        if isinstance(line.get("value"), int | float):
            low, high = line.get("low"), line.get("high")
            interval = f"{low:.4f} to {high:.4f}" if isinstance(low, float) and isinstance(high, float) else ""
            yield stage, f"{line.get('step', 0):,}", name, f"{line['value']:.4f}", interval


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
