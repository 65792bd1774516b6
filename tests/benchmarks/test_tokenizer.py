"""The tokenizer benchmark on a text of a few kilobytes: the shape of its result, and that libraries agree."""

import json

import pytest

from benchmarks.tokenizer import format_tokenizer_table, measure_tokenizers
from fledgling.config import UserError
from tests.text.conftest import sample_texts


@pytest.mark.parametrize("digits", (1, 2))
def test_every_library_encodes_to_the_same_ids(tmp_path, digits):
    texts = sample_texts()
    folder = tmp_path / "pretrain"
    folder.mkdir()
    for part in range(2):
        rows = texts[part::2]
        (folder / f"{part}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in rows))
    result = measure_tokenizers(tmp_path, vocab_size=512, max_digits=digits, megabytes=1)
    assert result["agree"]
    assert result["documents"] == len(texts)
    assert "tokenizers" in result["train"]
    for row in result["encode"].values():
        assert all(row[threads][state] > 0 for threads in ("one_thread", "all_cores") for state in ("cold", "warm"))
    assert "ids agree" in format_tokenizer_table(result)


def test_without_text_it_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"no \.jsonl files in .*pretrain; give --data-dir"):
        measure_tokenizers(tmp_path)
