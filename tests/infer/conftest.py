"""A small tokenizer, and a model whose weights make it a chain: each token has one successor."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from fledgling.config import ModelConfig
from fledgling.infer.engine import Engine
from fledgling.model.transformer import Transformer
from fledgling.text.tokenizer import Tokenizer

CONTEXT = 64


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the quick brown fox jumps over the lazy dog again and again " * 9], vocab_size=330)


@pytest.fixture(scope="session")
def chain(tokenizer: Tokenizer) -> Callable[[dict[int, int]], Engine]:
    """Returns a function that makes an engine whose greedy answer follows {token: successor}, then assistant_end.

    The blocks of a freshly initialized model add nothing, so one-hot embeddings and the head make it a lookup table.
    """

    def make(successors: dict[int, int], context: int = CONTEXT) -> Engine:
        width = -(-tokenizer.vocab_size // 8) * 8
        model = Transformer(ModelConfig(tokenizer.vocab_size, 1, width, 4, 4, context))
        model.initialize(0)
        table = torch.full((tokenizer.vocab_size,), tokenizer.assistant_end)
        for token, successor in successors.items():
            table[token] = successor
        model.embedding.weight.data = torch.eye(tokenizer.vocab_size, width)
        model.head.weight.data = torch.zeros(tokenizer.vocab_size, width)
        model.head.weight.data[table, torch.arange(tokenizer.vocab_size)] = 1.0
        return Engine(model, tokenizer)

    return make


@pytest.fixture(scope="session")
def adder(tokenizer: Tokenizer, chain) -> Engine:
    """An engine that answers everything with "=", the tool call 2+3, and "!"."""
    t, order = tokenizer, [ord(c) for c in "2+3"]
    steps = [t.assistant_start, ord("="), t.python_start, *order, t.python_end]
    successors = dict(itertools.pairwise(steps))
    successors |= {t.output_end: ord("!"), ord("!"): t.assistant_end}
    return chain(successors)
