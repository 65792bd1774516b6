"""The embedded corpus: deterministic, bounded, without repetitions and without torch."""

import subprocess
import sys

import pytest

from fledgling.config import UserError
from fledgling.corpora import embedded
from fledgling.corpora.document import count_bytes_by_kind, measure_line_overlap, split_held_out
from fledgling.corpora.embedded import KINDS, Deduplicator, harvest_embedded


def test_repeated_sentences_are_dropped():
    deduplicator = Deduplicator()
    first = "The input array has 3 rows. It must be contiguous in memory."
    assert deduplicator.drop_repeats([first, "Returns:"]) == [first, "Returns:"]
    assert deduplicator.drop_repeats(["the input   array has 42 rows.", "Returns:"]) == ["Returns:"]
    mixed = "It must be contiguous in memory. " + "This is said here for the first time, at some length. " * 4
    assert deduplicator.drop_repeats([mixed]) == [mixed]  # mostly new


def test_a_harvest_is_deterministic_and_bounded():
    first = harvest_embedded(max_bytes=150_000)
    again = harvest_embedded(max_bytes=150_000)
    assert first == again and 100_000 < sum(document.num_bytes for document in first) <= 150_000
    assert len({document.text for document in first}) == len(first)
    assert all(document.kind in KINDS and document.origin for document in first)
    assert count_bytes_by_kind(first) == {
        kind: sum(d.num_bytes for d in first if d.kind == kind) for kind in count_bytes_by_kind(first)
    }


@pytest.mark.parametrize("kind", ["docstrings", "comments", "source"])
def test_each_kind_can_be_harvested_alone(kind):
    calls = []
    documents = harvest_embedded((kind,), max_bytes=60_000, progress=lambda *args: calls.append(args))
    assert sum(document.num_bytes for document in documents) > 30_000 and count_bytes_by_kind(documents).keys() == {
        kind
    }
    assert all(len(d.text) >= embedded.MIN_CHARACTERS and d.num_bytes <= 2 * embedded.MAX_CHARACTERS for d in documents)
    assert calls[0][:2] == (kind, 1) and calls[-1][1] < calls[-1][2]  # it stopped early
    if kind == "source":
        blocks = [d for d in documents if d.text.startswith(("import", "from", "class", "def"))]
        assert blocks and not any('"""' in d.text.split("\n")[0] for d in documents)


def test_an_unknown_kind_is_rejected():
    with pytest.raises(UserError, match="corpus kind 'docs': expected some of topics, docstrings"):
        harvest_embedded(("docs",))


def test_harvesting_does_not_import_torch():
    code = (
        "import sys, fledgling.corpora.embedded as c; c.harvest_embedded(('topics',)); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_split_of_docstrings_overlaps_by_less_than_one_percent():
    documents = harvest_embedded(("docstrings",), max_bytes=1_500_000)
    training, validation = split_held_out(documents, 0.05)
    assert validation and measure_line_overlap(training, validation) < 0.01
    assert sum(d.num_bytes for d in training) > 0.8 * sum(d.num_bytes for d in documents)
