"""Past runs are compared by the content of a user's text, and by the names of what is published."""

from dataclasses import replace

import pytest

from fledgling.config import load_recipe
from fledgling.plan.past_runs import SHIPPED, describe_data, load_past_runs, select_text
from fledgling.speedrun.text_digests import digest_texts


def describe(mixture, read=None):
    recipe = load_recipe("quickstart")
    recipe = replace(recipe, pretrain=replace(recipe.pretrain, mixture=dict.fromkeys(mixture, 1.0)))
    return describe_data(recipe, digest_texts(recipe, read))


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """Two projects that both call their text `text`."""
    for project in ("a", "b"):
        (tmp_path / project / "text").mkdir(parents=True)
        (tmp_path / project / "text" / "one.txt").write_text(f"the text of {project}\n")
    monkeypatch.chdir(tmp_path / "a")
    return tmp_path


def test_two_texts_of_one_name_are_two_and_a_moved_one_is_one(texts, monkeypatch):
    first = describe(["text"])
    assert describe([str(texts / "a" / "text")]) == first == describe(["../a/text"])
    monkeypatch.chdir(texts / "b")
    assert describe(["text"]) != first
    (texts / "a" / "text").rename(texts / "elsewhere")
    assert describe(["../elsewhere"]) == first
    (texts / "elsewhere" / "one.txt").write_text("it was edited\n")
    assert describe(["../elsewhere"]) != first


def test_what_a_stage_has_read_counts_and_not_what_became_of_the_text(texts):
    before = describe(["text"])
    recorded = {"text": {"content": "0123456789ab"}}
    assert describe(["text"], recorded) != before
    (texts / "a" / "text").rename(texts / "gone")
    assert describe(["text"], recorded) == describe(["text"], recorded) != before


@pytest.mark.parametrize("kind", ["chat:", "questions:", "env:"])
def test_files_of_conversations_questions_and_environments_are_identified_by_their_content(kind, texts):
    name = f"{kind}rows.py:Game" if kind == "env:" else f"{kind}rows.jsonl"
    described = []
    for text in ("{}", "[]"):
        (texts / "a" / "rows.jsonl").write_text(text)
        (texts / "a" / "rows.py").write_text(text)
        described.append(describe([name]))
    assert described[0] != described[1] and all("text " in each for each in described)


def test_a_column_of_a_file_is_a_text_of_its_own(texts):
    (texts / "a" / "rows.jsonl").write_text("{}")
    assert len({describe([f"rows.jsonl{columns}"]) for columns in ("", "?text=body", "?text=title")}) == 3


def test_the_shipped_runs_are_of_what_its_name_alone_identifies():
    recipe = load_recipe("quickstart")
    shipped = {select_text(run.data) for run in load_past_runs((SHIPPED,))}
    assert digest_texts(recipe) == {} and shipped == {select_text(describe_data(recipe))}
    for name in ("env:guessing", "mmlu", "smoltalk", "language", "fineweb-edu"):
        assert describe([name]).startswith(f"{name}; ")
