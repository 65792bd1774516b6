"""Imported by the process that the ranks of `on_ranks` are forks of: what all of them need is imported and read here.

No thread is started and nothing is computed, so that forks are safe.
"""

import pyarrow.parquet  # noqa: F401
import tokenizers  # noqa: F401

import fledgling.evals.session
import fledgling.train.run  # noqa: F401
from fledgling.tasks.skills import words
from tests.short_preparation import shorten_preparation

shorten_preparation()
words.harvest_words()
