"""N-gram overlap: found exactly where 13 consecutive words are equal, whatever separates them."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from fledgling.corpora.document import Document
from fledgling.corpora.ngram_overlap import find_overlap

ITEM = "The orbit of each planet about the Sun is an ellipse with the Sun at one focus."


def find_matches(item, text, words=13):
    return find_overlap([item], [Document(text, origin="here")], words).matches


def test_markup_case_and_line_breaks_make_no_difference():
    text = "Kepler: **the ORBIT** of each “planet” about\nthe Sun — is an *ellipse* with the Sun, at one focus"
    match = find_matches(ITEM, text)[0]
    assert match.origin == "here" and match.words.startswith("the ORBIT** of each") and match.item == 0


def test_twelve_words_or_one_other_word_are_no_overlap():
    twelve = "the orbit of each planet about the sun is an ellipse with"
    assert (
        find_matches(ITEM, twelve) == {}
        and find_matches(ITEM, f"{twelve} a sun") == {}
        and find_matches(ITEM, f"{twelve} the") != {}
    )
    assert find_matches("only a few words", "only a few words") == {}


def test_no_ngram_crosses_two_documents_or_two_items():
    first, second = ITEM.split(" is ")
    documents = [Document(f"{first} is"), Document(second)]
    assert find_overlap([ITEM], documents).matches == {}
    assert find_overlap([f"{first} is", second], [Document(ITEM)]).matches == {}


def test_every_item_of_a_shared_ngram_is_reported_with_counts():
    report = find_overlap([ITEM, "short", f"Kepler said: {ITEM}", ITEM.replace("orbit", "path")], [Document(ITEM)] * 3)
    assert set(report.matches) == {0, 2, 3}
    assert len(report.searchable) == report.num_documents == 3
    assert report.num_bytes > 3 * len(ITEM)


WORD = st.sampled_from(["a", "b", "Été", "x1", "über", "“", "—", "§"])


@settings(deadline=None)
@given(st.lists(WORD, max_size=12), st.lists(WORD, max_size=40))
def test_it_agrees_with_a_comparison_of_words(item, text):
    def grams(words):
        plain = re.findall(r"[^\W_]+", " ".join(words).lower())
        return {tuple(plain[i : i + 3]) for i in range(len(plain) - 2)}

    # only ASCII letters are compared without case: É and é differ
    item, text = ([word.replace("Été", "été") for word in words] for words in (item, text))
    assert bool(find_matches(" ".join(item), " ".join(text), 3)) == bool(grams(item) & grams(text))
