"""A small tokenizer, and a model whose weights make it a chain: each token has one successor."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fledgling.infer import grammar
from fledgling.infer.engine import Engine
from fledgling.text.tokenizer import Tokenizer
from tests.chain_model import list_adding_successors, make_chain
from tests.waits import WAIT_SECONDS

CONTEXT = 64


@pytest.fixture(autouse=True)
def patient_grammars(monkeypatch):
    """A grammar may take a minute: a collection of garbage during a mask counts as its time and ends no answer."""
    monkeypatch.setattr(grammar, "ALLOWED_SECONDS", WAIT_SECONDS)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the quick brown fox jumps over the lazy dog again and again " * 9], vocab_size=330)


@pytest.fixture(scope="session")
def chain(tokenizer: Tokenizer) -> Callable[[dict[int, int]], Engine]:
    """Returns a function that makes an engine whose greedy answer follows {token: successor}, then assistant_end."""

    def make(successors: dict[int, int], context: int = CONTEXT) -> Engine:
        return make_chain(tokenizer, successors, context)

    return make


@pytest.fixture(scope="session")
def adder(tokenizer: Tokenizer, chain) -> Engine:
    """An engine that answers everything with "=", the tool call 2+3, and "!"."""
    return chain(list_adding_successors(tokenizer, "!"))
