"""The embedded corpus: lifted from Python files, cleaned, freed of repeats, and held out by content."""

import lzma
import subprocess
import sys
import textwrap

import pytest

from fledgling.config import UserError
from fledgling.corpora import embedded, split
from fledgling.corpora.document import Document
from fledgling.corpora.embedded import KINDS, Deduplicator, count_bytes_by_kind, harvest_embedded
from fledgling.corpora.prose import (
    clean_documentation,
    drop_empty_headings,
    is_noise,
    normalized_sentences,
    unwrap_lines,
)
from fledgling.corpora.python_text import scan_python
from fledgling.corpora.split import make_zstd_compressor, measure_compressed_bpb, measure_line_overlap

SOURCE = textwrap.dedent('''\
    #!/usr/bin/env python
    """The module."""

    # A block of comment
    # in two lines.
    #
    #     indented = example
    TABLE = {"key": """no docstring""", 'hash': "# no comment"}  # stays

    class Bird(Base):
        """A bird.

        It sings.
        """

        async def sing(self, text="# not"):
            r"""Sing \\d times."""
            # aside
            return f"""{text}"""

        def fly(self):
            """Only this."""

    add_docstr(torch.abs, r"""abs(input) -> Tensor""" + tail)
    def after(): return '"""'
    ''')


def test_a_scan_finds_docstrings_with_their_owners():
    assert scan_python(SOURCE).docstrings == [
        ("", "The module."),
        ("Bird", "A bird.\n\nIt sings."),
        ("Bird.sing", "Sing \\d times."),
        ("Bird.fly", "Only this."),
        ("torch.abs", "abs(input) -> Tensor"),
    ]


def test_a_scan_finds_comment_blocks_and_leaves_the_code_valid():
    found = scan_python(SOURCE)
    assert found.comments == ["A block of comment\nin two lines.\n\n    indented = example", "aside"]
    compile(found.code, "code", "exec")
    assert "pass" in found.code and '"# no comment"}  # stays' in found.code
    assert "A bird" not in found.code and "aside" not in found.code and "abs(input)" not in found.code


@pytest.mark.parametrize("text", ["", "'", '"""', "#", "def", "x = '''\n", '"\\', "class A:\n    '''doc"])
def test_a_scan_takes_any_text(text):
    scan_python(text)


def test_wrapped_prose_is_joined_and_structure_stays():
    prose = """\
This sentence runs over the end of the line, so that it is continued on
the next one, and this one
stands alone because the line before was short.
- an item of a list that is long enough to be wrapped, and therefore has
  a second line
- another item
>>> example = "a line of code that is long enough to look like prose, but is none"
"and its output"
name (str): a parameter with a description that goes on to the next line and
    is indented there
other (int): the next one"""
    assert unwrap_lines(prose).split("\n") == [
        "This sentence runs over the end of the line, so that it is continued on the next one, and this one",
        "stands alone because the line before was short.",
        "- an item of a list that is long enough to be wrapped, and therefore has a second line",
        "- another item",
        '>>> example = "a line of code that is long enough to look like prose, but is none"',
        '"and its output"',
        "name (str): a parameter with a description that goes on to the next line and is indented there",
        "other (int): the next one",
    ]


def test_cleaning_drops_markup_noise_and_legal_text():
    text = """\
Title
=====
See :func:`~torch.abs` and ``code`` and “quotes”.

.. versionadded:: 3.1

Copyright 2001, all rights reserved by those who hold them.

0x00 0x01 0x02 0x03 1234 5678 9012 3456 7890 1234

Что-то совсем другое, чего модель не прочтёт."""
    assert clean_documentation(text) == ['Title\nSee `torch.abs` and `code` and "quotes".']
    assert is_noise("x = f(a[0], b[1]); y = {k: v for k in z}", strict=True)
    assert not is_noise("The table is resized when it is two thirds full.", strict=True)


def test_headings_without_text_go():
    parts = ["Examples", "Returns:", "A value.", "See Also", "Notes"]
    assert drop_empty_headings(parts) == ["Returns:", "A value."]


def test_what_was_seen_is_not_let_through_again():
    repeats = Deduplicator()
    first = "The input array has 3 rows. It must be contiguous in memory."
    assert repeats.drop_repeats([first, "Returns:"]) == [first, "Returns:"]
    assert repeats.drop_repeats(["the input   array has 42 rows.", "Returns:"]) == ["Returns:"]
    mixed = "It must be contiguous in memory. " + "This is said here for the first time, at some length. " * 4
    assert repeats.drop_repeats([mixed]) == [mixed]  # mostly new


def test_a_small_harvest_is_quick_deterministic_and_bounded():
    told = []
    first = harvest_embedded(max_bytes=150_000, progress=lambda *args: told.append(args))
    again = harvest_embedded(max_bytes=150_000)
    assert first == again and 100_000 < sum(document.num_bytes for document in first) <= 150_000
    assert len({document.text for document in first}) == len(first)
    assert all(document.kind in KINDS and document.origin for document in first)
    assert count_bytes_by_kind(first) == {
        kind: sum(d.num_bytes for d in first if d.kind == kind) for kind in count_bytes_by_kind(first)
    }


@pytest.mark.parametrize("kind", ["docstrings", "comments", "source"])
def test_each_kind_alone(kind):
    told = []
    found = harvest_embedded((kind,), max_bytes=60_000, progress=lambda *args: told.append(args))
    assert sum(document.num_bytes for document in found) > 30_000 and count_bytes_by_kind(found).keys() == {kind}
    assert all(len(d.text) >= embedded.MIN_CHARACTERS and d.num_bytes <= 2 * embedded.MAX_CHARACTERS for d in found)
    assert told[0][:2] == (kind, 1) and told[-1][1] < told[-1][2]  # it stopped early
    if kind == "source":
        whole = [d for d in found if d.text.startswith(("import", "from", "class", "def"))]
        assert whole and not any('"""' in d.text.split("\n")[0] for d in found)


def test_an_unknown_kind_is_told():
    with pytest.raises(UserError, match="corpus kind 'docs': expected some of topics, docstrings"):
        harvest_embedded(("docs",))


def test_the_corpus_needs_no_torch():
    code = (
        "import sys, fledgling.corpora.embedded as c; c.harvest_embedded(('topics',)); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- the held-out part ---------------------------------------------------------------------------


def sentence(number: int) -> str:
    return f"Sentence {chr(97 + number % 26) * (number // 26 + 1)} is about a thing of its own."


def made(count: int, lines: int = 12) -> list[Document]:
    texts = ["\n\n".join(sentence(number * lines + line) for line in range(lines)) for number in range(count)]
    return [Document(text, "docstrings", str(number)) for number, text in enumerate(texts)]


def test_what_is_held_out_depends_on_the_document_alone():
    documents = made(400)
    held = {document.text for document in split.split_held_out(documents, 0.1)[1]}
    assert 20 <= len(held) <= 60
    assert {d.text for d in split.split_held_out(documents[::-3], 0.1)[1]} == held & {d.text for d in documents[::-3]}
    assert held <= {
        document.text for document in split.split_held_out(documents, 0.2)[1]
    }  # a larger share holds out more


def test_lines_of_the_held_out_part_are_taken_from_training():
    documents = made(100)
    held = split.split_held_out(documents, 0.1)[1]
    assert held
    copied = held[0].text.split("\n\n")[3]
    copies = [Document(d.text + "\n\n" + copied.upper() + "\n\nReturns", d.kind, d.origin) for d in documents]
    training, validation = split.split_held_out(copies, 0.1)
    assert measure_line_overlap(copies, validation) == 1.0
    assert measure_line_overlap(training, validation) == pytest.approx(
        sum(len("Returns") for _ in validation)
        / sum(len(line.encode()) for d in validation for line in d.text.split("\n"))
    )
    seen = {line for d in training for line in normalized_sentences(d.text, split.MIN_SHARED_LINE)}
    assert seen.isdisjoint(line for d in validation for line in normalized_sentences(d.text, split.MIN_SHARED_LINE))


def test_short_lines_of_a_users_own_text_do_not_cost_it_paragraphs():
    speeches = [Document(f"{d.text}\n\nKING RICHARD:\n{sentence(9_000 + i)}") for i, d in enumerate(made(60))]
    training, validation = split.split_held_out(speeches, 0.1)
    assert validation and all("KING RICHARD" in document.text for document in training)


def test_line_overlap_counts_bytes_of_whole_lines():
    training = [Document("same line\n  other")]
    assert measure_line_overlap(training, [Document("  same line\nnew")]) == pytest.approx(9 / 12)
    assert measure_line_overlap(training, [Document("  same line\nnew")], min_length=10) == 0
    assert measure_line_overlap([], [Document("")]) == 0


def test_the_real_split_overlaps_by_less_than_a_hundredth():
    documents = harvest_embedded(("docstrings",), max_bytes=1_500_000)
    training, validation = split.split_held_out(documents, 0.05)
    assert validation and measure_line_overlap(training, validation) < 0.01
    assert sum(d.num_bytes for d in training) > 0.8 * sum(d.num_bytes for d in documents)


def test_compressors_know_what_they_have_seen():
    documents = made(60)
    told = []
    seen = measure_compressed_bpb(documents, documents[:3], told.append)
    assert told[0].startswith("xz -9e over ")
    alone = 8 * len(lzma.compress(documents[0].text.encode())) / documents[0].num_bytes
    for name in ("xz -9e", "zstd -19 --long"):
        if seen[name] is not None:
            assert 0 < seen[name] < 0.2 < alone
    assert (seen["zstd -19 --long"] is None) == (make_zstd_compressor() is None) == bool(seen["note"])


def test_a_cap_on_the_training_text_is_told(monkeypatch):
    monkeypatch.setattr(split, "MAX_COMPRESSOR_BYTES", 1_000)
    monkeypatch.setattr(split, "make_zstd_compressor", lambda: None)
    result = measure_compressed_bpb(made(60), made(2))
    assert result["training bytes"] == 1_000 and result["zstd -19 --long"] is None
    assert "the last 1,000 of" in result["note"] and "no compression.zstd, zstandard or zstd" in result["note"]
