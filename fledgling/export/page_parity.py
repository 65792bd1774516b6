"""Compares a page in one file with its model: what the quantization changes, and whether the page's engine is ours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fledgling.export.node_calls import MIN_NODE, call_in_node, find_node, read_logits
from fledgling.export.page_weights import PageWeights
from fledgling.export.parity import Parity, compare_logits
from fledgling.kernels.quantized_tensor import QuantizedTensor
from fledgling.model.transformer import Transformer


def compare_html(model: Transformer, weights: PageWeights, page: Path, start: int | None) -> Iterator[Parity]:
    """Yields comparisons: of the model before and after quantization, and of the latter with the page, in Node."""
    reference, vocab_size = weights.load_reference(), model.config.vocab_size
    if not isinstance(model.head.weight.data, QuantizedTensor):

        def compute_logits(tokens: list[int]) -> Tensor:
            return reference.compute_logits(reference(torch.tensor([tokens])))[0]

        yield compare_logits(model, compute_logits, f"in {weights.bits} bits, run by fledgling", start)
    version = find_node()
    if version is None:
        needed = ".".join(map(str, MIN_NODE))
        print(f"no node {needed} or newer here: the page itself is not compared", file=sys.stderr)
        return

    def call_page(tokens: list[int]) -> Tensor:
        return read_logits(call_in_node(page, [["logits", tokens]])[0], vocab_size)

    yield compare_logits(reference, call_page, f"in {weights.bits} bits, the page's engine in node {version}", start)
