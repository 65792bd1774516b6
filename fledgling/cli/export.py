"""`fledgling export`: a checkpoint in the formats of other programs, each with a table of its differences."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from fledgling.cli.options import Checkpoint, Json
from fledgling.config import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from fledgling.export.parity import Parity
    from fledgling.model.transformer import Transformer

Fold = Annotated[bool, Parameter(negative=())]

app = App(
    name="export", help="A checkpoint in the formats of other programs: hf, gguf, adapter; html, a page that chats."
)


@app.command
def hf(
    checkpoint: Checkpoint,
    out: Path,
    /,
    *,
    dtype: str = "float32",
    shard_gb: float = 4.0,
    fold_norms: Fold = False,
    as_json: Json = False,
) -> int:
    """Write a Hugging Face directory that transformers loads, and compare the two.

    Parameters
    ----------
    out
        The directory to write.
    dtype
        Storage type of the weights: float32 (lossless), bfloat16 or float16.
    shard_gb
        Largest file of weights, in GB.
    fold_norms
        Multiply the norms' weights into the following matrices, which leaves ones (llama, untied).
    """
    from fledgling.export.model_card import find_run_dir, render_model_card
    from fledgling.export.parity import compare_hf
    from fledgling.export.write_hf import write_hf
    from fledgling.infer.runner import load_model
    from fledgling.kernels.quantized_model import require_unquantized
    from fledgling.record.checkpoint import resolve_checkpoint

    if not shard_gb > 0:
        raise UserError(f"--shard-gb is {shard_gb}; expected a number above 0")
    path = resolve_checkpoint(checkpoint)
    model, tokenizer, state = load_model(path)
    require_unquantized(state, path, "exported")
    run = find_run_dir(path)
    text = render_model_card(model.config, model.count_parameters(), tokenizer, state, run, dtype)
    write_hf(out, model.config, _weights(model, fold_norms), tokenizer, text, dtype, int(shard_gb * 1e9))
    return _print_parity(out, compare_hf(model, out, tokenizer.bos_or_none), as_json)


@app.command
def gguf(
    checkpoint: Checkpoint,
    out: Path,
    /,
    *,
    type: Annotated[str, Parameter(name="--type")] = "f16",
    fold_norms: Fold = False,
    as_json: Json = False,
) -> int:
    """Write a model as one GGUF file with its tokenizer, and a Modelfile for Ollama; compare the two.

    llama.cpp runs it as llama, qwen3, arcee or gpt2, by its parts; the recipe quickstart-gguf trains such a model.

    Parameters
    ----------
    out
        The file to write, usually NAME.gguf.
    type
        f32, f16, q8_0 or q4_0.
    fold_norms
        Multiply the norms' weights into the following matrices, which leaves ones (untied heads).
    """
    from fledgling.export.chat_template import supports_chat
    from fledgling.export.gguf import write_gguf
    from fledgling.export.modelfile import write_modelfile
    from fledgling.export.parity import compare_gguf
    from fledgling.infer.runner import load_model
    from fledgling.kernels.quantized_model import require_unquantized

    model, tokenizer, state = load_model(checkpoint)
    require_unquantized(state, checkpoint, "exported")
    if out.is_dir():
        raise UserError(f"{out} is a directory; expected the name of a file, such as {out / 'model.gguf'}")
    write_gguf(out, model.config, _weights(model, fold_norms), tokenizer, type, out.stem)
    if supports_chat(tokenizer):
        print(write_modelfile(out.with_suffix(".Modelfile"), out, model.config, tokenizer), file=sys.stderr)
    return _print_parity(out, compare_gguf(model, out, tokenizer.bos_or_none), as_json)


@app.command
def html(
    checkpoint: Checkpoint,
    out: Path,
    /,
    *,
    bits: int | None = None,
    group_size: int | None = None,
    embedding: Fold = False,
    as_json: Json = False,
) -> int:
    """Write a chat model as one HTML page that runs in a browser, from a disk and without a network; compare the two.

    The page has the weights, the tokenizer, the calculator and an engine in WebAssembly.

    Parameters
    ----------
    out
        The file to write, usually NAME.html.
    bits
        8 or 4, of the matrices; default 4, or those of a checkpoint that is quantized already.
    group_size
        Adjacent values of a row that share a scale; default 64 for 8 bits, 32 for 4.
    embedding
        Quantize the embedding too, which makes the page of a large vocabulary smaller.
    """
    from fledgling.cli.serve import run_name
    from fledgling.export.html import write_html
    from fledgling.export.page_parity import compare_html
    from fledgling.export.page_weights import quantize_for_page
    from fledgling.infer.runner import load_model
    from fledgling.serve.examples import list_examples
    from fledgling.serve.page_files import PAGE

    if out.is_dir():
        raise UserError(f"{out} is a directory; expected the name of a file, such as {out / 'model.html'}")
    model, tokenizer, state = load_model(checkpoint)
    weights = quantize_for_page(model, state, bits, group_size, embedding)
    name, examples = run_name(checkpoint, state), list_examples(str(state.get("recipe", "")))
    write_html(out, PAGE, model.config, weights.tensors, tokenizer, name, weights.bits, examples)
    print(f"{out.stat().st_size:,} bytes", file=sys.stderr)
    return _print_parity(out, compare_html(model, weights, out, tokenizer.bos_or_none), as_json)


@app.command
def adapter(checkpoint: Checkpoint, out: Path, /, *, base: str | None = None, as_json: Json = False) -> None:
    """Write the adapter of a checkpoint in peft's format.

    Parameters
    ----------
    out
        The directory to write.
    base
        Name of the model that it belongs to, for other programs; default: what the run started from.
    """
    from fledgling.export.checkpoint_weights import write_adapter
    from fledgling.record.checkpoint import resolve_checkpoint

    write_adapter(resolve_checkpoint(checkpoint), out, base)
    print(json.dumps({"path": str(out)}) if as_json else out)


def _weights(model: Transformer, folded: bool) -> dict[str, Tensor]:
    """Returns the model's state dictionary, with norm weights folded into the matrices if requested."""
    from fledgling.model.flash_norm import fold_norm_weights

    return fold_norm_weights(model.config, model.state_dict()) if folded else model.state_dict()


def _print_parity(out: Path, comparisons: Iterable[Parity], as_json: bool) -> int:
    """Prints the path of the export and the differences that each reader has."""
    rows = []
    for row in comparisons:
        print(f"compared with {row.reference}", file=sys.stderr)
        rows.append(row)
    if as_json:
        print(json.dumps({"path": str(out), "parity": [vars(row) for row in rows]}, indent=2))
        return 0
    print(out)
    width = max(len(row.reference) for row in rows)
    print(f"{'':<{width}}  largest logit difference  greedy agreement (one random row and one greedy text)")
    for row in rows:
        print(f"{row.reference:<{width}}  {row.max_difference:>24.2e}  {row.greedy_matches:>9} of {row.greedy_tokens}")
    return 0
