"""Overlap: found wherever 13 words in a row are the same, whatever stands between them, and nowhere else."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from fledgling.corpora.contamination import find_overlap
from fledgling.corpora.document import Document

ITEM = "The orbit of each planet about the Sun is an ellipse with the Sun at one focus."


def found(item, text, words=13):
    return find_overlap([item], [Document(text, origin="here")], words).matches


def test_markup_case_and_line_breaks_hide_nothing():
    shown = "Kepler: **the ORBIT** of each “planet” about\nthe Sun — is an *ellipse* with the Sun, at one focus"
    match = found(ITEM, shown)[0]
    assert match.origin == "here" and match.words.startswith("the ORBIT** of each") and match.item == 0


def test_twelve_words_or_one_other_word_are_no_overlap():
    twelve = "the orbit of each planet about the sun is an ellipse with"
    assert found(ITEM, twelve) == {} and found(ITEM, f"{twelve} a sun") == {} and found(ITEM, f"{twelve} the") != {}
    assert found("only a few words", "only a few words") == {}


def test_no_window_crosses_two_documents_or_two_items():
    first, second = ITEM.split(" is ")
    documents = [Document(f"{first} is"), Document(second)]
    assert find_overlap([ITEM], documents).matches == {}
    assert find_overlap([f"{first} is", second], [Document(ITEM)]).matches == {}


def test_every_item_that_owns_a_window_is_named_and_counts_are_kept():
    report = find_overlap([ITEM, "short", f"Kepler said: {ITEM}", ITEM.replace("orbit", "path")], [Document(ITEM)] * 3)
    assert set(report.matches) == {0, 2, 3} and (report.num_items, report.num_searchable, report.num_documents) == (
        4,
        3,
        3,
    )
    assert report.num_bytes > 3 * len(ITEM)


WORD = st.sampled_from(["a", "b", "Été", "x1", "über", "“", "—", "§"])


@settings(deadline=None)
@given(st.lists(WORD, max_size=12), st.lists(WORD, max_size=40))
def test_it_agrees_with_comparing_words(item, text):
    def grams(words):
        plain = re.findall(r"[^\W_]+", " ".join(words).lower())
        return {tuple(plain[i : i + 3]) for i in range(len(plain) - 2)}

    # only ASCII letters lose their case: É and é differ, in both ways of looking
    item, text = ([word.replace("Été", "été") for word in words] for words in (item, text))
    assert bool(found(" ".join(item), " ".join(text), 3)) == bool(grams(item) & grams(text))
