"""The standard library: facts are docstrings, and a module is asked for only where it is unambiguous."""

import math

import pytest

from fledgling.config import UserError
from fledgling.tasks import load_task
from fledgling.tasks.skills import stdlib
from fledgling.tasks.task import TEST


def test_facts_are_the_docstrings_of_this_python():
    facts = stdlib.collect_facts()
    assert len(facts) == stdlib.NUM_FACTS == len({fact.description for fact in facts})
    by_name = {f"{fact.module}.{fact.name}": fact for fact in facts}
    assert by_name["math.sqrt"].description == math.sqrt.__doc__.strip().splitlines()[-1].strip()
    assert all(len(fact.description) <= stdlib.MAX_ANSWER_CHARACTERS and fact.description.isascii() for fact in facts)
    assert stdlib.collect_facts(10) == facts[:10]
    with pytest.raises(UserError, match="lower the number"):
        stdlib.collect_facts(100_000)


def test_a_module_is_asked_for_only_where_one_module_has_the_name():
    facts = stdlib.collect_facts(stdlib.NUM_FACTS)  # the task's own: what a test imports may give a name to a module
    unambiguous = {f"{fact.module}.{fact.name}" for fact in facts if fact.has_unique_name}
    for question in load_task("stdlib").draw_exam(TEST, 250):
        assert question.facts["kind"] == "does" or question.facts["name"] in unambiguous
