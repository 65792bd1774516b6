"""Renders the model card: every value on it is read from the checkpoint or from a file of its run."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fledgling.config import ModelConfig
from fledgling.export.card_origin import describe_origin
from fledgling.export.chat_template import supports_chat, supports_tools
from fledgling.export.checkpoint_weights import read_adapter_state
from fledgling.export.hf_mapping import class_name, to_hf_config
from fledgling.export.own_class import needs_own_class
from fledgling.record import read_jsonl
from fledgling.record.evaluation_names import format_cases, is_quoted
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
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
{imports}
tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained("."{options})
{lines}
```
"""
TOOL_USAGE = """

def answer(question, max_new_tokens=256):
    \"\"\"Returns the most likely answer. What the model writes between the tokens of a call is calculated.\"\"\"
    messages = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    start, end, done = tokenizer.convert_tokens_to_ids(["<|python_start|>", "<|python_end|>", "<|output_end|>"])
    stops = [*model.generation_config.eos_token_id, end]
    prompt = seen = ids.shape[1]
    limit = min(prompt + max_new_tokens, model.config.max_position_embeddings)
    while ids.shape[1] < limit:
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": limit - ids.shape[1]}
        ids = model.generate(ids, do_sample=False, eos_token_id=stops, **options)
        new = ids[0, seen:].tolist()
        if new[-1] != end:
            break
        if start in new:
            call = tokenizer.decode(new[len(new) - new[::-1].index(start) : -1])
            output = f"<|output_start|>{calculate(call)}<|output_end|>"
            ids = torch.cat([ids, tokenizer(output, add_special_tokens=False, return_tensors="pt")["input_ids"]], 1)
            seen = ids.shape[1]
    new = ids[0, prompt:].tolist()
    after_calls = max((i + 1 for i, token in enumerate(new) if token == done), default=0)
    return tokenizer.decode(new[after_calls:], skip_special_tokens=True)


print(answer("How many r are in strawberry?"))"""
CHAT_USAGE = """messages = [{"role": "user", "content": "How many r are in strawberry?"}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=256)
print(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))"""
COMPLETION_USAGE = """ids = tokenizer("{start}" + "The sea", return_tensors="pt")["input_ids"]
output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=64)
print(tokenizer.decode(output[0]))"""
TOOLS_NOTE = """
`tools` is what the model could call while it answered, greedily, without sampling. {code} A value
without an entry there is no answer in text: bits per byte, or a choice by likelihood. The values were measured with
{weights}, in the precision of the training run or of `fledgling eval`.
"""
CODE_WITH_CALCULATOR = "The code below calls the calculator in `calculator.py`"
SAME_VALUES = ", so that it reaches the same values in that precision."
CODE_BY_TEMPLATE = "The code below asks through the chat template, as exams without tools did"
CODE_WITHOUT_TOOLS = "The code below calls nothing: it does not reach the values that need a tool."
OTHER_WEIGHTS = "{weights}, not with those in these files: these files hold {stored}, with which nothing was measured"
TEMPLATE_WARNING = """
The template is rendered as text and tokenized as a whole, so the name of a control token in a user's message becomes
that token. A server for untrusted text should remove such names, or tokenize each part separately.
"""


def render_model_card(
    config: ModelConfig,
    parameters: int,
    tokenizer: Tokenizer,
    state: Mapping[str, Any],
    run: Path | None,
    stored: str = "",
) -> str:
    """Returns the text of README.md, whose code reaches the scores that the card quotes if the weights are the same.

    Args:
        config: the model's configuration.
        parameters: their number.
        tokenizer: the tokenizer.
        state: the checkpoint's.
        run: the run directory that contains it, or None.
        stored: what the files hold in the place of the weights that were measured (`describe_stored`); "": these.
    """
    recipe = _read_recipe(state)
    name = str(recipe.get("name") or state.get("name") or "model")
    layout = bool(tokenizer.chat_layout)  # of a model that was imported with its own
    chat = layout or (supports_chat(tokenizer) and state.get("stage") != "pretrain")
    kind = "A chat model" if chat else "A language model"
    sentence = f"{kind} of {parameters:,} parameters, made with fledgling and loaded as `{class_name(config)}`."
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
    table += describe_origin(state, run)
    parts = [
        FRONT_MATTER.format(kind=to_hf_config(config)["model_type"], name=name, sentence=sentence),
        format_table(("", ""), table),
    ]
    with_tools = chat and supports_tools(tokenizer)
    evaluations = list(_list_evaluations(run, str(state.get("stage")), state.get("step"))) if run else []
    if run and not evaluations:
        parts.append("\nNo evaluation of these weights was recorded during training.")
    if evaluations:
        columns = ("stage", "step", "what", "value", "95 %", "n", "tools")
        code = CODE_WITH_CALCULATOR if with_tools else CODE_BY_TEMPLATE if layout else ""
        code = code + ("." if stored else SAME_VALUES) if code else CODE_WITHOUT_TOOLS
        weights = _describe_measured(state)
        if stored:
            weights = OTHER_WEIGHTS.format(weights=weights, stored=stored)
        note = TOOLS_NOTE.format(code=code, weights=weights)
        parts += ["\n## Measured during training\n", format_table(columns, evaluations), note]
    start = next((text for text, index in tokenizer.special_tokens.items() if index == tokenizer.bos_or_none), "")
    usage = TOOL_USAGE if with_tools else CHAT_USAGE if chat else COMPLETION_USAGE.format(start=start)
    options = ", trust_remote_code=True" if needs_own_class(config) else ""  # it carries modeling_fledgling.py
    imports = "\nfrom calculator import calculate\n" if with_tools else ""
    parts.append(
        USAGE_SECTION.format(imports=imports, options=options, lines=usage) + (TEMPLATE_WARNING if chat else "")
    )
    return "\n".join(parts)


def describe_stored(dtype: str, quantize: str | None = None, folded: bool = False) -> str:
    """Returns what an export holds in the place of the weights of a checkpoint; "" where it holds these.

    Args:
        dtype: of the files.
        quantize: of the matrices; None: they are not quantized.
        folded: whether the norms' weights are multiplied into the matrices.
    """
    if quantize:
        held = f"the matrices of the blocks in {quantize} and the other weights in {dtype}"
    else:
        held = "" if dtype == "float32" else f"the weights in {dtype}"
    if not folded:
        return held
    return f"{held or 'the weights'}, the norms' multiplied into the matrices"


def _describe_measured(state: Mapping[str, Any]) -> str:
    """Returns which weights the run measured: those of the checkpoint, or an adapter on quantized ones."""
    described = read_adapter_state(dict(state), Path())
    if described is None or described[0].quantization == "none":
        return "the weights of this checkpoint"
    return f"the weights of this checkpoint, an adapter on {described[0].quantization} weights (merged here)"


def find_run_dir(checkpoint: Path) -> Path | None:
    """Returns the run directory of a checkpoint RUN/STAGE/checkpoints/step-N, None for another one.

    What RUN/bases keeps are weights that a stage of that name no longer has: its record is not of them.
    """
    checkpoint = checkpoint.resolve()
    run_dir = checkpoint.parents[2]
    return run_dir if checkpoint.parent.name == "checkpoints" and (run_dir / "recipe.toml").is_file() else None


def _read_recipe(state: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return tomllib.loads(str(state.get("recipe", "")))
    except tomllib.TOMLDecodeError:
        return {}


def _list_evaluations(run: Path, stage: str, step: int | None) -> Iterable[tuple[str, ...]]:
    """Yields every quoted evaluation of the checkpoint of `stage` after `step`, over the most cases."""
    last: dict[str, dict[str, Any]] = {}
    for line in read_jsonl(run / stage / "evals.jsonl"):
        name = line.get("name")
        if isinstance(name, str) and isinstance(line.get("value"), int | float) and line.get("step") == step:
            last[name] = max(line, last.get(name, line), key=lambda entry: entry.get("n") or 0)
    for name, line in last.items():
        if not is_quoted(name, last):
            continue
        low, high, n = line.get("low"), line.get("high"), line.get("n")
        interval = f"{low:.4f} to {high:.4f}" if isinstance(low, float) and isinstance(high, float) else ""
        count = format_cases(n, line.get("clusters"), line.get("cluster_unit")) if isinstance(n, int) else ""
        # Older runs recorded no tools: exams, which have a best constant answer, could call what the engine had.
        tools = line.get("tools") or ("not recorded" if line.get("baseline") is not None else "")
        yield stage, f"{line.get('step', 0):,}", name, f"{line['value']:.4f}", interval, count, tools


def format_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Returns rows as a table in Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
