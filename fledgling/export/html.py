"""Writes a chat model as one HTML page that works without a server: weights, tokenizer, calculator, engine, chat page.

The page is that of `fledgling serve`, with page/local_api.js in the place of serve/page/api.js: it answers requests in
the browser. Weights are those of `fledgling quantize` (kernels/format.py), as safetensors; page/engine.cpp multiplies
them in fp32. So the reference of its answers is the engine with the same quantized weights in fp32.

What a model writes is untrusted. The page has a policy that lets nothing run but its own script, which it names by
its hash, and loads nothing from anywhere.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from fledgling.config import ModelConfig, UserError
from fledgling.export.link_modules import link_modules
from fledgling.export.page_tokenizer import describe_tokenizer, list_merges
from fledgling.export.page_weights import PageWeights
from fledgling.export.wasm import COMPILED, PAGE
from fledgling.model.rope import make_frequencies, plain_frequencies
from fledgling.record import make_write_error
from fledgling.record.durable import write_file
from fledgling.text.tokenizer import Tokenizer

ENTRY = "page.js"
MODEL_ID, ENGINE_ID = "model-file", "engine"  # of the elements that hold them
MODULE = '<script type="module" src="page.js"></script>'
STYLESHEET = '<link rel="stylesheet" href="page.css">'
API_KEY = '<label class="wide">API key'  # which no server requires here
FEATURES = {  # optional ones that network.js computes
    *("flash_norm", "value_embeddings", "window_pattern", "residual_scalars", "skip_scalars", "back_out", "smear"),
    *("head_gates", "exclusive_attention", "logit_shift"),
}
MERGES = "tokenizer.merges"  # tensor of the page's file


def write_html(
    path: Path, page: Path, weights: PageWeights, tokenizer: Tokenizer, name: str, examples: Sequence[str] = ()
) -> Path:
    """Writes the page in one rename and returns its path.

    Args:
        path: the file to write.
        page: the folder with the files of the server's chat page.
        weights: the model's, quantized.
        tokenizer: the tokenizer.
        name: the model's name on the page.
        examples: questions that the page offers.

    Raises:
        UserError: the page cannot run this model or its tokenizer, or the file cannot be written.
    """
    require_supported(weights.config)
    file = make_model_file(weights, tokenizer, name, examples)
    try:
        write_file(path, render_model_page(page, file, name).encode())
    except OSError as problem:
        raise make_write_error(path, problem) from None
    return path


def require_supported(config: ModelConfig) -> None:
    """Raises UserError for a feature or a width that network.js does not know."""
    if unknown := sorted(set(config.enabled_features) - FEATURES):
        raise UserError(f"export html does not know model.{unknown[0]}; switch it off, or use export hf")
    for name, width, unit in (("width / heads", config.head_width, 4), ("width", config.width, 16)):
        if width % unit:
            raise UserError(f"model.{name} is {width}; export html needs a multiple of {unit}")


def make_model_file(weights: PageWeights, tokenizer: Tokenizer, name: str, examples: Sequence[str] = ()) -> bytes:
    """Returns the model as safetensors, whose metadata describe it to the page; arguments as of `write_html`."""
    config = weights.config
    count = sum(_count_values(key, tensor) for key, tensor in weights.tensors.items())
    description = {
        "name": name,
        "size": f"{count:,} parameters in {weights.bits} bits",
        "examples": list(examples),
        "config": {**config.to_dict(), "head_width": config.head_width, "num_skips": config.num_skips},
        "layers": [_describe_layer(config, layer) for layer in range(config.depth)],
        "rotary": _describe_rotary(config),
        "tokenizer": describe_tokenizer(tokenizer),
    }
    merges = torch.tensor(list_merges(tokenizer), dtype=torch.int32).reshape(-1, 3)
    stored = {key: tensor.contiguous() for key, tensor in weights.tensors.items()}
    return save({**stored, MERGES: merges}, {"description": json.dumps(description, ensure_ascii=False)})


def _count_values(name: str, tensor: Tensor) -> int:
    """Returns the parameters that a stored tensor holds."""
    if name.endswith(".scales"):
        return 0
    return tensor.numel() * (2 if tensor.dtype == torch.uint8 else 1)


def _describe_layer(config: ModelConfig, layer: int) -> dict[str, Any]:
    rotary = None if not config.has_rope(layer) else int(config.has_local_rope(layer))
    window = config.layer_window_size(layer)
    return {"window": window, "rotary": rotary, "value_embedding": config.has_value_embedding(layer)}


def _describe_rotary(config: ModelConfig) -> list[dict[str, Any]]:
    """Returns the angles of one position and the factor of cosines and sines; second, of layers with a window."""
    if config.positions != "rope":
        return []
    tables = [make_frequencies(config)]
    if config.rope_local_base:
        tables.append((plain_frequencies(config.rope_local_base, config.rotary_width), 1.0))
    return [{"frequencies": frequencies.tolist(), "scale": scale} for frequencies, scale in tables]


def render_model_page(page: Path, model_file: bytes, name: str) -> str:
    """Returns the whole page."""
    html, style = ((page / file).read_text(encoding="utf-8") for file in ("index.html", "page.css"))
    script = link_modules(ENTRY, read_modules(page))
    policy = make_policy(script, style)
    html = _replace(html, '<meta charset="utf-8">', f'<meta charset="utf-8">\n  {policy}')
    html = _replace(html, STYLESHEET, f"<style>{style}</style>")
    html = _replace(html, f"  {MODULE}\n", "")
    html = _replace(html, API_KEY, API_KEY.replace(">", " hidden>"))
    html = _replace(html, "<html ", f'<html data-store="{hashlib.sha256(name.encode()).hexdigest()[:16]}" ')
    blocks = {MODEL_ID: gzip.compress(model_file, 9, mtime=0), ENGINE_ID: COMPILED.read_bytes()}
    data = "\n".join(
        f'<script type="application/octet-stream" id="{key}">{base64.b64encode(content).decode()}</script>'
        for key, content in blocks.items()
    )
    return _replace(html, "</body>", f'{data}\n<script type="module">{script}</script>\n</body>')


def read_modules(page: Path | None = None) -> dict[str, str]:
    """Returns the modules of the page by name: those of the server's page, and our own, one of them in its place."""
    folders = [PAGE] if page is None else [page, PAGE]
    modules = {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for folder in folders
        for path in [*sorted(folder.glob("*.js")), *sorted(folder.glob("vendor/*.bundle.js"))]
    }
    return {**modules, "api.js": modules["local_api.js"]}


def make_policy(script: str, style: str) -> str:
    """Returns the element with the page's policy: its own script and style, by their hashes, and nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    rules = (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}' 'wasm-unsafe-eval'; style-src 'sha256-{hashes[1]}'; "
        "img-src data:; base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'; trusted-types dompurify"
    )
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}">'


def _replace(html: str, old: str, new: str) -> str:
    assert html.count(old) == 1, f"the chat page has {html.count(old)} times {old!r}"
    return html.replace(old, new)
