"""Small engines and tasks that several tests of evals share."""

import pytest
import torch

from fledgling.config import ModelConfig
from fledgling.infer.engine import Engine
from fledgling.model.transformer import Transformer
from fledgling.tasks.core import CoreTask, read_core_tasks
from fledgling.text.tokenizer import Tokenizer
from tests.evals.random_model import make_random_model
from tests.made_up_core import write_core_bundle
from tests.made_up_sets import write_public_sets

TEXTS = ["Which stone stands at place one? Respond only with the letter of the correct answer. A B C D"] * 20


@pytest.fixture(scope="module")
def engine() -> Engine:
    tokenizer = Tokenizer.train(iter(TEXTS), 320, max_digits=1, letter_tokens=True)
    model = Transformer(ModelConfig(320, 2, 32, 2, 2, 128))
    model.initialize(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    return Engine(model.eval(), tokenizer)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_public_sets(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def core_tokenizer() -> Tokenizer:
    """Few merges: almost every token is a letter, alone or after a space."""
    return Tokenizer.train(["the quick brown fox jumps over the lazy dog again and again " * 9], vocab_size=330)


@pytest.fixture(scope="module")
def core_engine(core_tokenizer) -> Engine:
    return Engine(make_random_model(core_tokenizer.vocab_size), core_tokenizer)


@pytest.fixture(scope="module")
def core_tasks(tmp_path_factory) -> dict[str, CoreTask]:
    return {task.label: task for task in read_core_tasks(write_core_bundle(tmp_path_factory.mktemp("data")))}
