"""Our tensors and those of Hugging Face's classes: one table of names, read in both directions.

One idea: a tensor of theirs is one or several of ours, stacked along the first dimension (GPT-2 keeps queries, keys and
values in one), perhaps transposed (GPT-2 stores (in, out)). A list of such entries is the whole difference, so export
and import cannot disagree. No value is ever changed.

    fledgling  NanoChatForCausalLM      gpt2  GPT2LMHeadModel      llama  LlamaForCausalLM
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fledgling.config import UserError
from fledgling.model.config import FAMILIES, ModelConfig

CLASSES = {"fledgling": "NanoChatForCausalLM", "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}
# What a class of theirs can be told; the other parts must be those of the family.
OPEN = {
    "fledgling": {"activation", "tied", "softcap", "norm_eps"},
    "gpt2": {"tied", "norm_eps"},
    "llama": {"tied", "bias", "norm_eps"},
}


@dataclass(frozen=True)
class Entry:
    """One tensor of theirs: our tensors that it is made of, stacked along dimension 0, then perhaps transposed."""

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False


def check_family(config: ModelConfig) -> None:
    """Raise UserError, naming the part, unless the family's class in transformers can hold this model."""
    for part, expected in FAMILIES[config.family].items():
        given = getattr(config, part)
        if given != expected and part not in OPEN[config.family]:
            raise UserError(
                f"this model's {part} is {given!r} and {CLASSES[config.family]} has {expected!r}: "
                "it is of no class that transformers ships"
            )
    if config.activation == "swiglu" and config.family == "fledgling":
        raise UserError("this model's activation is 'swiglu' and NanoChatForCausalLM has two matrices, not three")
    if config.family == "gpt2" and config.kv_heads != config.heads:
        raise UserError(f"this model has {config.kv_heads} key/value heads of {config.heads}; GPT2LMHeadModel has all")


def entries(config: ModelConfig) -> list[Entry]:
    """The tensors of the family's class in transformers, in its own order, each stored tensor once."""
    found = list({"fledgling": _nanochat, "gpt2": _gpt2, "llama": _llama}[config.family](config))
    if not config.tied:
        found.append(Entry("lm_head.weight", ("head.weight",)))
    return found


def _nanochat(config: ModelConfig) -> Iterator[Entry]:
    yield Entry("model.embed_tokens.weight", ("embedding.weight",))
    for layer in range(config.depth):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield Entry(f"{theirs}.self_attn.{name}.weight", (f"{ours}.attention.{name}.weight",))
        for name in ("fc1", "fc2"):
            yield Entry(f"{theirs}.mlp.{name}.weight", (f"{ours}.mlp.{name}.weight",))


def _llama(config: ModelConfig) -> Iterator[Entry]:
    kinds = ("weight", "bias") if config.bias else ("weight",)
    yield Entry("model.embed_tokens.weight", ("embedding.weight",))
    for layer in range(config.depth):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        for kind in kinds:
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                yield Entry(f"{theirs}.self_attn.{name}.{kind}", (f"{ours}.attention.{name}.{kind}",))
            for name in ("gate_proj", "up_proj", "down_proj"):
                yield Entry(f"{theirs}.mlp.{name}.{kind}", (f"{ours}.mlp.{name}.{kind}",))
        yield Entry(f"{theirs}.input_layernorm.weight", (f"{ours}.attention_norm.weight",))
        yield Entry(f"{theirs}.post_attention_layernorm.weight", (f"{ours}.mlp_norm.weight",))
    yield Entry("model.norm.weight", ("norm.weight",))


def _gpt2(config: ModelConfig) -> Iterator[Entry]:
    yield Entry("transformer.wte.weight", ("embedding.weight",))
    yield Entry("transformer.wpe.weight", ("positions.weight",))
    for layer in range(config.depth):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        for kind in ("weight", "bias"):
            yield Entry(f"{theirs}.ln_1.{kind}", (f"{ours}.attention_norm.{kind}",))
            yield Entry(f"{theirs}.ln_2.{kind}", (f"{ours}.mlp_norm.{kind}",))
            turned = kind == "weight"  # theirs are (in, out)
            stacked = tuple(f"{ours}.attention.{name}.{kind}" for name in ("q_proj", "k_proj", "v_proj"))
            yield Entry(f"{theirs}.attn.c_attn.{kind}", stacked, turned)
            yield Entry(f"{theirs}.attn.c_proj.{kind}", (f"{ours}.attention.o_proj.{kind}",), turned)
            yield Entry(f"{theirs}.mlp.c_fc.{kind}", (f"{ours}.mlp.fc1.{kind}",), turned)
            yield Entry(f"{theirs}.mlp.c_proj.{kind}", (f"{ours}.mlp.fc2.{kind}",), turned)
    for kind in ("weight", "bias"):
        yield Entry(f"transformer.ln_f.{kind}", (f"norm.{kind}",))


def join(entry: Entry, state: Mapping[str, Tensor]) -> Tensor:
    """Their tensor out of our state dictionary."""
    parts = [state[name] for name in entry.ours]
    tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
    return tensor.T.contiguous() if entry.transposed else tensor


def part(entry: Entry, tensor: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Our tensors, of the shapes given by name, out of theirs; the inverse of `join`.

    Raises UserError naming the tensor when its shape is not the one expected.
    """
    rows = [shapes[name][0] for name in entry.ours]
    expected = [sum(rows), *shapes[entry.ours[0]][1:]]
    if entry.transposed:
        expected.reverse()
    if list(tensor.shape) != expected:
        raise UserError(f"tensor {entry.theirs} has the shape {list(tensor.shape)}; config.json means {expected}")
    upright = tensor.T if entry.transposed else tensor
    return {name: piece.contiguous() for name, piece in zip(entry.ours, upright.split(rows), strict=True)}
