"""Words: harvested from the standard library, split into held-out and training words."""

import random
import subprocess
import sys

from fledgling.tasks.skills.words import harvest_words, list_real_words, sample_pseudoword


def test_the_harvest_is_large_sorted_and_clean():
    harvest = harvest_words()
    assert len(harvest) >= 5_000 and list(harvest) == sorted(set(harvest))
    assert all(word.isascii() and word.islower() and word.isalpha() and 3 <= len(word) <= 12 for word in harvest)
    assert not set(list_real_words(True, 12)) & set(list_real_words(False, 12))
    assert 0.07 < len(list_real_words(True, 12)) / len(harvest) < 0.13
    rng = random.Random(1)
    letters = "".join(sample_pseudoword(rng, 10) for _ in range(2_000))
    assert min(letters.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz") > 50


def test_the_harvest_pauses_the_collector_and_starts_it_again():
    script = """
import gc
from fledgling.tasks.skills.words import harvest_words
collections = []
gc.callbacks.append(lambda phase, about: collections.append(about["generation"]))
print(len(harvest_words()) > 5000, collections.count(2), gc.isenabled())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "0", "True"]
