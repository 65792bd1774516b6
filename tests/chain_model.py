"""A model whose weights make it a chain: each token has one successor, so that an answer can be written down."""

from __future__ import annotations

import itertools

import torch

from fledgling.config import ModelConfig
from fledgling.infer.engine import Engine
from fledgling.model.transformer import Transformer
from fledgling.text.tokenizer import Tokenizer


def make_chain(tokenizer: Tokenizer, successors: dict[int, int], context: int) -> Engine:
    """Returns an engine whose greedy answer follows {token: successor}, then assistant_end.

    The blocks of a freshly initialized model add nothing, so one-hot embeddings and the head make it a lookup table.
    """
    width = -(-tokenizer.vocab_size // 64) * 64  # whole groups, so that it can be quantized
    model = Transformer(ModelConfig(tokenizer.vocab_size, 1, width, 4, 4, context))
    model.initialize(0)
    table = torch.full((tokenizer.vocab_size,), tokenizer.assistant_end)
    for token, successor in successors.items():
        table[token] = successor
    model.embedding.weight.data = torch.eye(tokenizer.vocab_size, width)
    model.head.weight.data = torch.zeros(tokenizer.vocab_size, width)
    model.head.weight.data[table, torch.arange(tokenizer.vocab_size)] = 1.0
    return Engine(model, tokenizer)


def list_adding_successors(tokenizer: Tokenizer, answer: str) -> dict[int, int]:
    """Returns the successors of a model that answers everything with "=", the tool call 2+3, and then `answer`.

    Without a tool nothing follows the call.
    """
    t = tokenizer
    called = [t.assistant_start, ord("="), t.python_start, *(ord(c) for c in "2+3"), t.python_end]
    answered = [t.output_end, ord(answer), t.assistant_end]
    return dict([*itertools.pairwise(called), *itertools.pairwise(answered)])
