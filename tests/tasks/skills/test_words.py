"""Words: harvested from the standard library, split into held-out and training words."""

import random

from fledgling.tasks.skills.words import harvest_words, list_real_words, sample_pseudoword


def test_the_harvest_is_large_sorted_and_clean():
    words = harvest_words()
    assert len(words) >= 5_000 and list(words) == sorted(set(words))
    assert all(word.isascii() and word.islower() and word.isalpha() and 3 <= len(word) <= 12 for word in words)
    assert not set(list_real_words(True, 12)) & set(list_real_words(False, 12))
    assert 0.07 < len(list_real_words(True, 12)) / len(words) < 0.13
    rng = random.Random(1)
    letters = "".join(sample_pseudoword(rng, 10) for _ in range(2_000))
    assert min(letters.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz") > 50
