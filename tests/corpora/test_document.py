"""Documents: which are held out, and what training shares with them."""

import pytest

from fledgling.corpora.document import (
    MIN_SHARED_LINE,
    Document,
    measure_line_overlap,
    normalized_sentences,
    split_held_out,
)


def make_sentence(number: int) -> str:
    return f"Sentence {chr(97 + number % 26) * (number // 26 + 1)} is about a thing of its own."


def make_documents(count: int, lines: int = 12) -> list[Document]:
    texts = ["\n\n".join(make_sentence(number * lines + line) for line in range(lines)) for number in range(count)]
    return [Document(text, "docstrings", str(number)) for number, text in enumerate(texts)]


def test_holding_out_depends_on_the_document_alone():
    documents = make_documents(400)
    held = {document.text for document in split_held_out(documents, 0.1)[1]}
    assert 20 <= len(held) <= 60
    assert {d.text for d in split_held_out(documents[::-3], 0.1)[1]} == held & {d.text for d in documents[::-3]}
    assert held <= {document.text for document in split_held_out(documents, 0.2)[1]}  # a larger fraction holds out more


def test_of_few_documents_one_is_held_out():
    for documents in (make_documents(12)[start:] for start in range(3)):
        training, validation = split_held_out(documents, 1e-9)
        assert len(validation) == 1 and len(training) == len(documents) - 1
        assert split_held_out(documents[::-1], 1e-9)[1] == validation
    assert split_held_out(make_documents(9), 1e-9)[1] == []
    copies = [Document("One row of text, repeated to see whether it can be learned at all.")] * 20
    assert split_held_out(copies, 1e-9) == (copies, []), "nothing would be left to train on"
    shared = make_sentence(400)
    rows = [Document(f"{shared} {make_sentence(number)}") for number in range(1, 18)] + make_documents(30)[27:]
    for start in range(0, 17, 4):
        kept = split_held_out(rows[start:], 1e-9)[0]
        assert sum(document.num_bytes for document in kept) > 0.5 * sum(row.num_bytes for row in rows[start:])
    log = [Document("\n".join([shared, *map(make_sentence, range(50 * n, 50 * n + 50))])) for n in range(9, 21)]
    training, validation = split_held_out(log, 1e-9)
    assert len(validation) == 1 and len(training) == 11, "a line that recurs takes itself away alone"
    assert not any(shared in document.text for document in training)
    novels = [Document(f"{number} " + "A long story. " * 5_000) for number in range(9)]
    assert min([*novels, *make_documents(9)], key=Document.hash_fraction) in novels
    for novel in novels:
        training, validation = split_held_out([novel, *make_documents(9)], 1e-9)
        assert len(validation) == 1 and novel not in validation and novel in training


def test_lines_of_held_out_documents_are_removed_from_training():
    documents = make_documents(100)
    held = split_held_out(documents, 0.1)[1]
    assert held
    copied = held[0].text.split("\n\n")[3]
    copies = [Document(d.text + "\n\n" + copied.upper() + "\n\nReturns", d.kind, d.origin) for d in documents]
    training, validation = split_held_out(copies, 0.1)
    assert measure_line_overlap(copies, validation) == 1.0
    assert measure_line_overlap(training, validation) == pytest.approx(
        sum(len("Returns") for _ in validation)
        / sum(len(line.encode()) for d in validation for line in d.text.split("\n"))
    )
    seen = {line for d in training for line in normalized_sentences(d.text, MIN_SHARED_LINE)}
    assert seen.isdisjoint(line for d in validation for line in normalized_sentences(d.text, MIN_SHARED_LINE))


def test_short_lines_of_a_users_text_remove_no_paragraphs():
    speeches = [
        Document(f"{d.text}\n\nKING RICHARD:\n{make_sentence(9_000 + i)}") for i, d in enumerate(make_documents(60))
    ]
    training, validation = split_held_out(speeches, 0.1)
    assert validation and all("KING RICHARD" in document.text for document in training)


def test_line_overlap_counts_bytes_of_whole_lines():
    training = [Document("same line\n  other")]
    assert measure_line_overlap(training, [Document("  same line\nnew")]) == pytest.approx(9 / 12)
    assert measure_line_overlap(training, [Document("  same line\nnew")], min_length=10) == 0
    assert measure_line_overlap([], [Document("")]) == 0
