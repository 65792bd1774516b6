"""The questions that the page offers: of the tasks that the recipe taught, each short."""

from fledgling.config import dump_toml, load_recipe
from fledgling.serve.examples import list_examples


def test_the_page_offers_a_question_of_each_task_that_the_recipe_taught():
    taught = list_examples(dump_toml(load_recipe("quickstart")))
    assert len(taught) == len(set(taught)) > 1 and all(0 < len(question) < 100 for question in taught)
    assert list_examples("") == () and list_examples("no TOML [") == ()
