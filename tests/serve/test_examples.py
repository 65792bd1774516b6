"""The questions that the page offers: of the generated tasks that the recipe taught, each short."""

from types import SimpleNamespace

import pytest

from fledgling.config import UserError
from fledgling.serve import examples

RECIPE = """
[sft.mixture]
arithmetic = 1.0
spelling = 2.0
stdlib = 1.0
"chat:mine.jsonl" = 1.0
[rl.tasks]
counting = 1.0
arithmetic = 1.0
"""


def load_task(name):
    """A task whose first question is too long, and second has two lines; spelling cannot be loaded."""
    if name == "spelling":
        raise UserError("no words here")
    prompts = [f"{name}? " * 40, f"{name}?\nnow", *([] if name == "stdlib" else [f"{name}?"])]
    return SimpleNamespace(
        get_practice_question=lambda index, seed: SimpleNamespace(prompt=prompts[index % len(prompts)])
    )


@pytest.mark.parametrize(
    ("recipe", "expected"), [(RECIPE, ("arithmetic?", "counting?")), ("", ()), ("no TOML [", ()), ("[sft]", ())]
)
def test_the_page_offers_a_short_question_of_each_generated_task_that_was_taught(recipe, expected, monkeypatch):
    monkeypatch.setattr(examples, "load_task", load_task)
    assert examples.list_examples(recipe) == expected
