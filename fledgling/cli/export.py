"""`fledgling export`: a checkpoint in the formats of other programs, each with a table of its differences."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from fledgling.cli.options import Checkpoint, Json, print_to_stderr
from fledgling.config import UserError, require_number

if TYPE_CHECKING:
    from fledgling.export.parity import Parity
    from fledgling.model.transformer import Transformer

Fold = Annotated[bool, Parameter(negative=())]

app = App(
    name="export",
    help="A checkpoint in the formats of other programs: hf, gguf, mlx, onnx, adapter; html, a page that chats; push.",
)


@app.command
def hf(
    checkpoint: Checkpoint,
    out: Path,
    /,
    *,
    dtype: str = "float32",
    shard_gb: float = 4.0,
    quantize: str | None = None,
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
    quantize
        int8 or int4: the matrices in the form of compressed-tensors, which transformers and vLLM read.
    fold_norms
        Multiply the norms' weights into the following matrices, which leaves ones (llama, untied).
    """
    from fledgling.export.model_card import describe_stored, find_run_dir, render_model_card
    from fledgling.export.parity import compare_hf
    from fledgling.export.write_hf import write_hf
    from fledgling.infer.runner import load_model
    from fledgling.record.checkpoint import resolve_checkpoint
    from fledgling.record.outside import require_no_part_of_run

    require_number("--shard-gb", shard_gb, 1e6)
    require_no_part_of_run(out)
    path = resolve_checkpoint(checkpoint)
    model, tokenizer, state = load_model(path)
    _require_exportable(state, path)
    run = find_run_dir(path)
    stored = describe_stored(dtype, quantize, fold_norms)
    text = render_model_card(model.config, model.count_parameters(), tokenizer, state, run, stored)
    write_hf(out, model.config, _read_weights(model, fold_norms), tokenizer, text, dtype, int(shard_gb * 1e9), quantize)
    return _print_parity(out, compare_hf(model, out, tokenizer.bos_or_none, bool(quantize)), as_json)


@app.command
def gguf(
    checkpoint: Checkpoint,
    out: Path,
    /,
    *,
    type: Annotated[str, Parameter(name="--type")] = "f16",
    importance: str | None = None,
    fold_norms: Fold = False,
    as_json: Json = False,
) -> int:
    """Write a model as one GGUF file with its tokenizer, and a Modelfile for Ollama; compare the two.

    llama.cpp runs it as one of ten architectures, by its parts (docs/exports.md); quickstart-gguf trains such a model.

    Parameters
    ----------
    out
        The file to write, usually NAME.gguf.
    type
        f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, q4_0, iq4_xs, q3_k_m or q2_k.
    importance
        A file or folder, or "embedded": inputs that are large on this text are quantized more exactly (an imatrix).
    fold_norms
        Multiply the norms' weights into the following matrices, which leaves ones (untied heads).
    """
    from fledgling.export.gguf import write_gguf
    from fledgling.export.importance import measure_importance, read_importance_rows
    from fledgling.export.modelfile import write_modelfile
    from fledgling.export.parity import compare_gguf
    from fledgling.infer.runner import load_model
    from fledgling.record.outside import require_no_part_of_run

    require_no_part_of_run(out)
    model, tokenizer, state = load_model(checkpoint)
    _require_exportable(state, checkpoint)
    if out.is_dir():
        raise UserError(f"{out} is a directory; expected the name of a file, such as {out / 'model.gguf'}")
    if (modelfile := out.with_suffix(".Modelfile")) == out:
        raise UserError(f"{out} is the name of the Modelfile; expected another one, such as {out.with_suffix('.gguf')}")
    inputs = None
    if importance:
        inputs = measure_importance(model, read_importance_rows(importance, tokenizer, model.config.context))
    write_gguf(out, model.config, _read_weights(model, fold_norms), tokenizer, type, out.stem, inputs)
    notice = write_modelfile(modelfile, out, model.config, tokenizer)
    print_to_stderr(f"{modelfile}{f' ({notice})' if notice else ''}")
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
    from fledgling.export.html import write_html
    from fledgling.export.page_parity import compare_html
    from fledgling.export.page_weights import quantize_for_page
    from fledgling.infer.runner import load_model
    from fledgling.record.outside import require_no_part_of_run
    from fledgling.serve.examples import list_examples
    from fledgling.serve.page_files import PAGE
    from fledgling.serve.services import read_run_name

    require_no_part_of_run(out)
    if out.is_dir():
        raise UserError(f"{out} is a directory; expected the name of a file, such as {out / 'model.html'}")
    model, tokenizer, state = load_model(checkpoint)
    weights = quantize_for_page(model, state, bits, group_size, embedding)
    name, examples = (
        read_run_name(checkpoint, state),
        list_examples(str(state.get("recipe", "")), str(state.get("stage", ""))),
    )
    write_html(out, PAGE, weights, tokenizer, name, examples)
    print(f"{out.stat().st_size:,} bytes", file=sys.stderr)
    return _print_parity(out, compare_html(model, weights, out, tokenizer.bos_or_none), as_json)


@app.command
def mlx(checkpoint: Checkpoint, out: Path, /, *, as_json: Json = False) -> int:
    """Write a directory that mlx-lm loads, for Apple's processors, and compare the two where it is installed.

    Parameters
    ----------
    out
        The directory to write.
    """
    from fledgling.export.mlx import write_mlx
    from fledgling.export.parity import compare_mlx
    from fledgling.infer.runner import load_model
    from fledgling.record.outside import require_no_part_of_run

    require_no_part_of_run(out)
    model, tokenizer, state = load_model(checkpoint)
    _require_exportable(state, checkpoint)
    write_mlx(out, model.config, model.state_dict(), tokenizer)
    return _print_parity(out, compare_mlx(model, out, tokenizer.bos_or_none), as_json)


@app.command
def onnx(checkpoint: Checkpoint, out: Path, /, *, as_json: Json = False) -> int:
    """Write an ONNX graph from token ids to logits, of any batch and length, and compare the two in onnxruntime.

    Parameters
    ----------
    out
        The file to write, usually NAME.onnx.
    """
    from fledgling.export.onnx import write_onnx
    from fledgling.export.parity import compare_onnx
    from fledgling.infer.runner import load_model
    from fledgling.record.outside import require_no_part_of_run

    require_no_part_of_run(out)
    model, tokenizer, state = load_model(checkpoint)
    _require_exportable(state, checkpoint)
    if out.is_dir():
        raise UserError(f"{out} is a directory; expected the name of a file, such as {out / 'model.onnx'}")
    write_onnx(out, model)
    return _print_parity(out, compare_onnx(model, out, tokenizer.bos_or_none), as_json)


@app.command
def push(
    path: Path, repository: str, /, *, private: Fold = False, endpoint: str | None = None, as_json: Json = False
) -> None:
    """Upload an export to a hub, in one commit; the token is HF_TOKEN or a login, and never printed.

    Parameters
    ----------
    path
        What export hf, mlx or adapter wrote, a directory with nothing else; or a file of export gguf, onnx or html.
    repository
        OWNER/NAME, made if it does not exist.
    private
        Make it so that only its owner sees it.
    endpoint
        Address of the hub; default HF_ENDPOINT, else the public one.
    """
    from fledgling.export.push import push_export

    url, deleted = push_export(path, repository, private, endpoint)
    if deleted:
        print_to_stderr(f"deleted in {repository}, of an earlier model: {', '.join(deleted)}")
    print(json.dumps({"url": url, "deleted": deleted}) if as_json else url)


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
    from fledgling.export.write_adapter import write_adapter
    from fledgling.record.checkpoint import resolve_checkpoint
    from fledgling.record.outside import require_no_part_of_run

    require_no_part_of_run(out)
    if notice := write_adapter(resolve_checkpoint(checkpoint), out, base):
        print(notice, file=sys.stderr)
    print(json.dumps({"path": str(out)}) if as_json else out)


def _read_weights(model: Transformer, folded: bool) -> Mapping[str, Any]:
    """Returns the model's state dictionary, with norm weights folded into the matrices if requested."""
    from fledgling.model.flash_norm import fold_norm_weights

    return fold_norm_weights(model.config, model.state_dict()) if folded else model.state_dict()


def _require_exportable(state: Mapping[str, Any], checkpoint: Path) -> None:
    """Raises UserError for a quantized checkpoint; prints a line where other programs' formats leave something out."""
    from fledgling.kernels.quantized_model import require_unquantized

    require_unquantized(state, checkpoint, "exported")
    recipe = tomllib.loads(str(state.get("recipe", "")))
    if state.get("stage") == "dpo" and recipe.get("dpo", {}).get("objective") == "reward":
        print_to_stderr(
            "a reward model: its score, a value head, has no place in this format and is left out; what is written is "
            "the language model below it"
        )


def _print_parity(out: Path, comparisons: Iterable[Parity], as_json: bool) -> int:
    """Prints the path of the export and the differences that each reader has."""
    rows = []
    for row in comparisons:
        print(f"compared: {row.reference}", file=sys.stderr)
        rows.append(row)
    if as_json:
        print(json.dumps({"path": str(out), "parity": [vars(row) for row in rows]}, indent=2))
        return 0
    print(out)
    if not rows:
        print("not compared: the program that reads it is not installed here", file=sys.stderr)
        return 0
    width = max(len(row.reference) for row in rows)
    print(f"{'':<{width}}  largest logit difference  greedy agreement (one random row and one greedy text)")
    for row in rows:
        ties = f" ({row.greedy_ties} ties)" if row.greedy_ties else ""
        agreement = f"{row.greedy_matches:>9} of {row.greedy_tokens}{ties}"
        print(f"{row.reference:<{width}}  {row.max_difference:>24.2e}  {agreement}")
    return 0
