"""How much each input of a matrix matters (an "imatrix"): its mean square over a text that the model reads.

Quantization weighs the error of a column by it, as in llama.cpp, whose own importance is this sum over tokens. Products
are seen where they are computed, at `torch.nn.functional.linear`, so every family has one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fledgling.config import UserError
from fledgling.corpora.document import Document, split_held_out
from fledgling.corpora.embedded import harvest_embedded
from fledgling.corpora.readers import read_documents
from fledgling.model.transformer import Transformer
from fledgling.text.tokenizer import Tokenizer, bos_prefix

DOCUMENTS = 128  # that importance is measured on


class _Recorder(TorchFunctionMode):
    """Adds up the squares of the inputs of every product with one of these weights."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names, self.sums, self.counts = names, dict[str, Tensor](), dict[str, int]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and (name := self.names.get(args[1].data_ptr())):
            rows = args[0].detach().reshape(-1, args[0].shape[-1]).double()
            self.sums[name] = self.sums.get(name, 0) + rows.square().sum(0)
            self.counts[name] = self.counts.get(name, 0) + len(rows)
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def measure_importance(model: Transformer, rows: Iterable[list[int]]) -> dict[str, Tensor]:
    """Returns name of a weight -> (in,) mean square of its inputs, float32.

    Args:
        model: on the CPU, in float32, not quantized.
        rows: token ids, each at most the model's context.
    """
    plain = Transformer(replace(model.config, flash_norm=False))  # whose products read what they are given
    plain.load_state_dict(model.state_dict())
    recorder = _Recorder({weight.data_ptr(): name for name, weight in plain.named_parameters() if weight.ndim == 2})
    with recorder:
        for row in rows:
            plain.compute_logits(plain(torch.tensor([row])))
    return {name: (total / recorder.counts[name]).float() for name, total in recorder.sums.items()}


def read_importance_rows(text: str, tokenizer: Tokenizer, context: int) -> list[list[int]]:
    """Returns token ids of the first documents of a text, each cut to the context.

    text: a file or folder, or "embedded" for training documents of the embedded corpus in an order of their own.

    Raises UserError where there is no text.
    """
    documents: Iterable[Document] = read_documents(text) if text != "embedded" else ()
    if text == "embedded":
        documents = sorted(split_held_out(harvest_embedded())[0], key=Document.hash_fraction)
    encoded = (tokenizer.encode(document.text) for document in islice(documents, DOCUMENTS))
    rows = [(bos_prefix(tokenizer) + ids)[:context] for ids in encoded if ids]
    if not rows:
        raise UserError(f"--importance {text}: there is no text to read")
    return rows
