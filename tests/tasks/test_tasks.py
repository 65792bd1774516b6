"""The table of tasks: unknown names, and mixtures of generated tasks."""

import pytest

from fledgling.config import UserError
from fledgling.tasks import load_task, make_mixture_example
from fledgling.text.conversation import check_conversation


def test_a_mixture_follows_its_weights_and_joins_a_few():
    weights = {"arithmetic": 3.0, "spelling": 1.0, "identity": 0.0}
    examples = [make_mixture_example(weights, i, 5) for i in range(3_000)]
    assert examples[:50] == [make_mixture_example(dict(reversed(weights.items())), i, 5) for i in range(50)]
    single = [e for e in examples if len(e["messages"]) == 2]
    tools = sum(isinstance(e["messages"][1]["content"], list) for e in single)
    assert 0.70 < tools / len(single) < 0.80
    assert 0.04 < 1 - len(single) / len(examples) < 0.10
    for example in examples[:300]:
        check_conversation(example)


def test_unknown_names_and_empty_mixtures_raise_clear_errors():
    with pytest.raises(UserError, match='did you mean "spelling"'):
        load_task("speling")
    with pytest.raises(UserError, match="mixture of tasks is empty"):
        make_mixture_example({"spelling": 0.0}, 0, 0)
