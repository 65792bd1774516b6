"""Compares decoder families: the contents of a block of each family, and the parameters in total.

The feed-forward of GPT has two matrices with F / E = 4, that of Llama three with 2.66 to 3.5, so a block of either has
about 12 E^2 parameters; the families otherwise differ in embeddings, positions, biases and norms.
"""

from __future__ import annotations

from typing import Any

from fledgling.config import ModelConfig
from fledgling.config.model import FAMILIES
from fledgling.plan import flops
from fledgling.plan.parameters import COMPONENTS, count_parameters, parameter_formula

PUBLISHED = (("GPT-2", 3072, 768), ("Llama 2 7B", 11_008, 4_096), ("Llama 3 8B", 14_336, 4_096))  # (name, H, E)


def compare_families(depths: tuple[int, ...], vocab_size: int, context: int) -> list[dict[str, Any]]:
    """Returns one entry per depth and family, `fledgling` first: the contents of a block, and the counts."""
    return [
        describe_decoder(
            ModelConfig(depth=depth, context=context, family=family, preset="nanochat-2025").resolve(vocab_size)
        )
        for depth in depths
        for family in FAMILIES
    ]


def describe_decoder(config: ModelConfig) -> dict[str, Any]:
    """Returns the contents of a block of this model, its parameters by component and its formula."""
    counts, (terms, simplified) = count_parameters(config), parameter_formula(config)
    block = sum(counts[name] for name in ("attention", "feed_forward", "norms")) // config.depth
    norm_names = {"rms": "RMSNorm, weightless", "rms_weighted": "RMSNorm", "layer": "LayerNorm"}
    activation = {"relu2": "ReLU^2", "gelu": "GELU", "swiglu": "SwiGLU"}[config.activation]
    return {
        "family": config.family,
        "vocab_size": config.vocab_size,
        "context": config.context,
        "depth": config.depth,
        "width": config.width,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "hidden": config.intermediate_size,
        "hidden_ratio": config.intermediate_size / config.width,
        "block": {
            "positions": {"rope": "rotary", "learned": "learned, added once"}[config.positions],
            "norms": f"2 x {norm_names[config.norm]}" + (", q and k too" if config.qk_norm else ""),
            "attention_matrices": 4,
            "feed_forward_matrices": 3 if config.is_gated else 2,
            "activation": activation,
            "biases": config.bias and config.mlp_bias,
            "parameters": block,
            "parameters_per_width_squared": block / config.width**2,
        },
        "head": "tied to the embedding" if config.tie_embeddings else "its own matrix",
        "parameters": counts,
        "formula": terms,
        "simplified": simplified,
        "flops_per_token": flops.training_flops_per_token(config),
    }


def format_family_tables(entries: list[dict[str, Any]]) -> str:
    """Returns the entries of `compare_families` as lines of text: one table per depth, one column per family."""
    lines: list[str] = []
    for depth in dict.fromkeys(entry["depth"] for entry in entries):
        same_depth = [entry for entry in entries if entry["depth"] == depth]
        title = f"depth {depth}, context {same_depth[0]['context']:,}, {same_depth[0]['vocab_size']:,} entries"
        lines += ["", title] if lines else [title]
        rows = [("", [entry["family"] for entry in same_depth])]
        rows += [(name, [_format_cell(entry, name) for entry in same_depth]) for name in ROWS]
        rows += [
            (f"  {component.replace('_', ' ')}", [f"{entry['parameters'][component]:,}" for entry in same_depth])
            for component in COMPONENTS
        ]
        widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(same_depth))]
        label_width = max(len(name) for name, _ in rows)
        lines += [
            f"{name:<{label_width}}  "
            + "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
            for name, cells in rows
        ]
    return "\n".join(lines)


ROWS = (
    "width, heads",
    "positions",
    "norms",
    "attention",
    "feed-forward",
    "H / E",
    "biases",
    "head",
    "parameters of a block",
    "parameters of a block / E^2",
    "training FLOPs a token, full attention",
    "formula",
    "simplified",
    "parameters of all blocks and tables",
)


def _format_cell(entry: dict[str, Any], name: str) -> str:
    block = entry["block"]
    return {
        "width, heads": f"{entry['width']}, {entry['heads']}",
        "positions": block["positions"],
        "norms": block["norms"],
        "attention": f"{block['attention_matrices']} matrices",
        "feed-forward": f"{block['feed_forward_matrices']} matrices, {block['activation']}",
        "H / E": f"{entry['hidden']} / {entry['width']} = {entry['hidden_ratio']:.2f}",
        "biases": "yes" if block["biases"] else "no",
        "head": entry["head"],
        "parameters of a block": f"{block['parameters']:,}",
        "parameters of a block / E^2": f"{block['parameters_per_width_squared']:.2f}",
        "training FLOPs a token, full attention": f"{entry['flops_per_token']:,}",
        "formula": entry["formula"],
        "simplified": entry["simplified"],
        "parameters of all blocks and tables": f"{entry['parameters']['total']:,}",
    }[name]
